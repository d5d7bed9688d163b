"""Every route of the live application is listed, and answers as its rule says (SEC-06)."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute, Mount, Route

from assistant.identity import RULES as ACTIONS
from assistant.routes import RULES, find
from tests.server.serving import Served
from tests.server.visitor import Visitor

HEX = "0123456789abcdef" * 2
SAMPLES = {"path:path": "a/b.js", "file": HEX, "size": "192"}
REFUSED = 404


def walk(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(method, path with samples for its parameters) of every route, those of mounted applications included."""
    for context in iter_route_contexts(routes):
        route = context.original_route
        if isinstance(route, Mount):
            assert route.routes, f"{prefix}{route.path}: a mounted application whose routes cannot be seen"
            yield from walk(route.routes, prefix + route.path)
            continue
        assert isinstance(route, APIRoute | Route), f"{type(route).__name__}: not a kind of route this test can judge"
        path = re.sub(r"\{([^}]+)\}", lambda match: SAMPLES.get(match[1], "x1"), prefix + str(context.path))
        for method in sorted(context.methods or ()):
            yield method, path


def unlisted(app: FastAPI) -> list[str]:
    """The routes that no rule names."""
    return [f"{method} {path}" for method, path in walk(app.routes) if find(method, path) is None]


def get(live: Served, path: str) -> tuple[int, bytes]:
    """Status and body of a path that is sent exactly as it is written: httpx would tidy it up."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_every_route_is_listed(application: FastAPI) -> None:
    """SEC-06: a route without a rule, ours or Gradio's, fails the build."""
    found = list(walk(application.routes))
    assert ("POST", "/gradio_api/queue/join") in found, "the walk does not see Gradio's routes"
    assert len(found) > 60
    assert unlisted(application) == []


def test_every_rule_names_an_action_that_exists() -> None:
    """A rule refuses, or asks for an action of the one table."""
    assert {rule.action for rule in RULES} - {None} <= set(ACTIONS)


def test_every_allowed_rule_has_a_route(application: FastAPI) -> None:
    """No rule lets through what is not there any more: the next library version could put something else there."""
    found = list(walk(application.routes))
    idle = [rule.pattern.pattern for rule in RULES if rule.action and not any(_fits(rule, *route) for route in found)]
    assert idle == []


def _fits(rule: Any, method: str, path: str) -> bool:
    return method in rule.methods and bool(rule.pattern.fullmatch(path))


@pytest.mark.parametrize("where", ["application", "included router", "mounted application"])
def test_a_route_that_nobody_listed_is_found(where: str) -> None:
    """The test of the test: one more route, wherever it is added, is reported."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    def handler() -> None: ...

    if where == "application":
        app.get("/export/everything")(handler)
    elif where == "included router":
        router = APIRouter(prefix="/export")
        router.get("/everything")(handler)
        app.include_router(router)
    else:
        below = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        below.get("/everything")(handler)
        app.mount("/export", below)
    assert unlisted(app) == ["GET /export/everything"]


def test_what_a_rule_refuses_is_absent_for_everybody(
    application: FastAPI, live: Served, visit: Callable[[], Visitor]
) -> None:
    """A refused route is a 404 without a cookie, for a customer and for the administrator."""
    customer, admin = visit(), visit()
    admin.become_admin(live.token)
    refused = [(m, p) for m, p in walk(application.routes) if (rule := find(m, p)) and rule.action is None]
    assert len(refused) > 40
    with httpx.Client(base_url=live.address) as stranger:
        for method, path in refused:
            for client in (stranger, customer.client, admin.client):
                response = client.request(method, path, json={} if method == "POST" else None)
                assert response.status_code == REFUSED, f"{method} {path}: {response.status_code}"
    admin.client.cookies.clear()


ALLOWED = {
    # method and path: what a browser gets that has no cookie yet, or whose things these are not.
    ("GET", "/health"): 200,
    ("GET", "/page.js"): 200,
    ("GET", "/page.css"): 200,
    ("GET", f"/files/{HEX}"): 404,
    ("GET", "/events"): 422,
    ("GET", "/"): 200,
    ("HEAD", "/"): 200,
    ("GET", "/config"): 200,
    ("GET", "/config/"): 200,
    ("GET", "/assets/a/b.js"): 404,
    ("GET", "/static/a/b.js"): 404,
    ("GET", "/theme.css"): 200,
    ("GET", "/gradio_api/theme.css"): 200,
    ("GET", "/favicon.ico"): 200,
    ("GET", "/robots.txt"): 200,
    ("GET", "/gradio_api/startup-events"): 200,
    ("GET", "/gradio_api/heartbeat/x1"): 200,
    ("POST", "/gradio_api/queue/join"): 422,
    ("GET", "/gradio_api/queue/data"): 422,
    ("POST", "/gradio_api/cancel"): 422,
}


def test_the_allowed_routes_are_these(application: FastAPI) -> None:
    """What is let through is written down here a second time: a rule that grows is seen."""
    allowed = {(m, p) for m, p in walk(application.routes) if (rule := find(m, p)) and rule.action is not None}
    assert allowed == set(ALLOWED)


@pytest.mark.parametrize(("method", "path"), sorted(ALLOWED))
def test_an_allowed_route_answers_a_stranger(live: Served, method: str, path: str) -> None:
    """SEC-06: without a session each allowed route gives what is everybody's, and nothing of anybody's."""
    with (
        httpx.Client(base_url=live.address) as client,
        client.stream(method, path, json={} if method == "POST" else None) as response,
    ):
        assert response.status_code == ALLOWED[method, path]


@pytest.mark.parametrize(
    "path",
    [
        "/docs", "/openapi.json", "/redoc", "/admin", "/gradio_api", "/gradio_api/", "/gradio_api/queue/status", "//health",
        "/health/", "/health%0A", "/HEALTH", "/page.js/", "/files/..", f"/files/{HEX[:-1]}", f"/files/{HEX.upper()}",
        "/gradio_api/queue", "/assets/", "/.env", "/gradio_api/heartbeat/a/b",
    ],
)  # fmt: skip
def test_an_unlisted_path_is_absent(live: Served, path: str) -> None:
    """A path without a rule is a 404 before any application sees it."""
    assert get(live, path) == (404, b"There is nothing here.")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "POST"])
def test_an_unlisted_method_is_absent(live: Served, method: str) -> None:
    """A rule names its methods; another one on the same path does not exist."""
    with httpx.Client(base_url=live.address) as client:
        assert client.request(method, "/health").status_code == REFUSED


SECRETS = ("session.key", "assistant.db", "assistant.log", "settings.toml")
TRAVERSALS = (
    "../{0}", "../../{0}", "../../../../../../{0}", "..%2f{0}", "%2e%2e/{0}", "%2e%2e%2f{0}", "..%252f{0}", "..\\{0}",
    "..%5c{0}", "....//{0}", "..;/{0}", "%c0%ae%c0%ae/{0}", "./../{0}", "a/../../{0}", "%00/../{0}", "{1}/{0}", "/{1}/{0}",
    "%2f{1}/{0}", "file://{1}/{0}", "file=..%2f{0}",
)  # fmt: skip


@pytest.mark.parametrize(
    "prefix", ["/gradio_api/file=", "/static/", "/assets/", "/svelte/", "/files/", "/gradio_api/file/"]
)
def test_no_spelling_of_a_path_reads_a_file(live: Served, prefix: str) -> None:
    """SEC-05: nothing of the state folder and nothing of the machine is served, however its path is written."""
    secrets = [(live.home / name).read_bytes()[:16] for name in SECRETS if (live.home / name).exists()]
    assert len(secrets) >= 3
    for name in (*SECRETS, "passwd"):
        folder = "/etc" if name == "passwd" else str(live.home)
        for spelling in TRAVERSALS:
            status, body = get(live, prefix + spelling.format(name, folder))
            assert status in (403, 404), f"{prefix}{spelling}: {status}"
            assert b"root:" not in body
            assert not any(secret in body for secret in secrets)
