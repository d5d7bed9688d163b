"""What stands in front of every route: who asks, the one-time token, other sites, other people's pages, and sizes."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from assistant.guard import HEADERS, MAX_BODY
from assistant.identity import Role
from assistant.sessions import COOKIE, LIFETIME_SECONDS, Sessions
from tests.server.serving import Served
from tests.server.visitor import Visitor


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(live: Served) -> None:
    """HttpOnly, SameSite, for the whole path, for 90 days."""
    response = httpx.get(f"{live.address}/")
    cookie: SimpleCookie = SimpleCookie(response.headers["set-cookie"])
    morsel = cookie[COOKIE]
    assert (morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, "Lax", "/")
    assert int(morsel["max-age"]) == LIFETIME_SECONDS


def test_a_known_visitor_gets_no_new_cookie(visit: Callable[[], Visitor]) -> None:
    """Who has a cookie keeps it."""
    assert "set-cookie" not in visit().client.get("/").headers


@pytest.mark.parametrize(
    "cookie",
    [f"{COOKIE}=forged", f"{COOKIE}=", "a{b}=1", "path=/; a=b", ";;;", "=", f'{COOKIE}="x', "a" * 3000, "\x80\xff=1"],
)
def test_a_strange_cookie_makes_a_new_visitor(live: Served, cookie: str) -> None:
    """Whatever a browser sends as cookies, the page comes, with a cookie of ours."""
    response = httpx.get(f"{live.address}/", headers={b"Cookie": cookie.encode("latin-1")})
    assert response.status_code == 200
    assert COOKIE in response.headers["set-cookie"]


def test_a_cookie_of_ours_counts_beside_strange_ones(visit: Callable[[], Visitor], live: Served) -> None:
    """Another program on this host may set what it likes."""
    value = visit().client.cookies[COOKIE]
    response = httpx.get(f"{live.address}/", headers={"Cookie": f"a{{b}}=1; path=/; {COOKIE}={value}"})
    assert "set-cookie" not in response.headers


def test_the_printed_address_makes_one_administrator(live: Served, visit: Callable[[], Visitor]) -> None:
    """The first browser is the administrator, may open the address again, and nobody else may; it is in no answer and no log."""
    first, second = visit(), visit()
    assert first.client.head("/", params={"token": live.token}).status_code == 200, "a preview must not use it up"
    for _ in range(2):
        response = first.client.get("/", params={"token": live.token})
        assert (response.status_code, response.headers["location"]) == (303, "/")
        assert live.token not in response.text + str(response.headers)
    refused = second.client.get("/", params={"token": live.token})
    assert refused.status_code == 403
    assert refused.text.startswith("This address was used before")
    assert live.token not in refused.text + str(refused.headers)
    for path in ("/", "/config", "/page.js", "/gradio_api/startup-events"):
        assert live.token not in first.client.get(path).text
    assert live.token not in live.log
    assert sum(live.token in line for line in live.lines) == 1
    role = Sessions(live.home).read(first.client.cookies[COOKIE])
    assert role is not None
    assert role.role is Role.ADMIN


def _head(served: Served, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """A response to exactly these headers; nothing is added but what is named."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil", "127.0.0.1.evil", "evil@127.0.0.1.x", "0.0.0.0", "169.254.169.254", "", "[bad", "[::",
     "2130706433"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/config", "/health"])
def test_another_name_for_this_machine_is_refused(live: Served, host: str, path: str) -> None:
    """DNS rebinding: a page of another site whose name suddenly points here gets nothing, not even a cookie that counts."""
    assert _head(live, "GET", path, {"Host": host}).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_the_names_of_this_machine_are_answered(live: Served, host: str) -> None:
    """With or without a port, in any spelling."""
    assert _head(live, "GET", "/health", {"Host": host}).status == 200
    assert _head(live, "GET", "/health", {"Host": f"{host}:{live.port}"}).status == 200


EVIL = (
    "https://evil.example", "null", "", "http://localhost.evil", "http://127.0.0.1", "http://127.0.0.1:1", "file://",
    "http://[bad", "http://127.0.0.1:{port}.evil", "http://evil@127.0.0.1:{port}", "http://localhost:{port}",
)  # fmt: skip


@pytest.mark.parametrize("origin", EVIL)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/cancel"])
def test_another_site_cannot_change_anything(
    visit: Callable[[], Visitor], live: Served, origin: str, path: str
) -> None:
    """Cross-site: a state-changing request with the Origin of another site (CVE-2024-47084, CVE-2024-47165) is refused."""
    visitor = visit()
    body = {"data": [], "fn_index": 0, "session_hash": visitor.page, "event_id": "x"}
    response = visitor.client.post(path, json=body, headers={"Origin": origin.format(port=live.port)})
    assert (response.status_code, response.text) == (403, "This request came from another site.")


@pytest.mark.parametrize("origin", EVIL[:4])
@pytest.mark.parametrize(
    "path", ["/", "/config", "/page.js", "/assets/nothing.js", "/gradio_api/startup-events", "/nothing"]
)
def test_another_site_cannot_read_anything(visit: Callable[[], Visitor], origin: str, path: str) -> None:
    """No response says that another site may read it."""
    response = visit().client.get(path, headers={"Origin": origin})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_our_own_page_may_post(visit: Callable[[], Visitor], live: Served) -> None:
    """The Origin of the page itself is the one that is let through."""
    visitor = visit()
    visitor.client.headers["Origin"] = live.address
    assert visitor.call("_load").success


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("HEAD", "/", 200), ("GET", "/config", 200), ("GET", "/page.css", 200), ("GET", "/health", 200),
        ("GET", "/theme.css", 200), ("GET", "/nothing", 404), ("PUT", "/", 404), ("GET", "/files/" + "0" * 32, 404),
        ("GET", "/events", 422), ("GET", "/assets/nothing.js", 404), ("GET", "/?token=wrong", 403),
        ("POST", "/gradio_api/queue/join", 422), ("GET", "/events?conversation=nothing", 404),
    ],
)  # fmt: skip
def test_every_response_has_the_headers(live: Served, method: str, path: str, status: int) -> None:
    """Policy and the rest are on pages, files and refusals alike."""
    response = httpx.request(method, f"{live.address}{path}")
    assert response.status_code == status
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    assert "server" not in response.headers


def test_an_error_of_ours_has_the_headers_and_no_traceback(application: FastAPI) -> None:
    """What nobody thought of is a 500 with a reference, and still says the policy."""

    def broken() -> None:
        raise RuntimeError("the secret of the traceback")

    application.get("/health/broken")(broken)
    # Listed for this test alone, in front of the page's own routes.
    application.router.routes.insert(0, application.router.routes.pop())
    with pytest.MonkeyPatch.context() as patch:
        from assistant import guard, routes

        rule = routes.Rule(frozenset({"GET"}), re.compile("/health/broken"), "page.read")
        patch.setattr(guard, "find", lambda method, path: rule)
        response = TestClient(application, base_url="http://127.0.0.1", raise_server_exceptions=False).get(
            "/health/broken"
        )
    application.router.routes.pop(0)
    assert response.status_code == 500
    assert re.fullmatch(r"Something went wrong\. Reference: [0-9a-f]{8}", response.text)
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def test_the_policy_lets_no_request_out() -> None:
    """Every kind of request that a page can make is limited to its own origin."""
    policy: dict[str, list[str]] = {}
    for directive in HEADERS["Content-Security-Policy"].split(";"):
        name, *sources = directive.split()
        policy[name] = sources
    assert policy["default-src"] == policy["connect-src"] == policy["form-action"] == ["'self'"]
    assert policy["object-src"] == policy["frame-ancestors"] == ["'none'"]
    assert not [source for sources in policy.values() for source in sources if "*" in source or "http" in source]
    assert "'unsafe-eval'" not in policy["script-src"]


def test_a_body_may_not_be_larger_than_it_says(live: Served) -> None:
    """413 by what the header claims, before anything is read."""
    headers = {"Content-Type": "application/json", "Content-Length": str(MAX_BODY + 1)}
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        lines = [f"Host: 127.0.0.1:{live.port}", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall(("POST /gradio_api/queue/join HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/cancel"])
def test_a_body_may_not_grow_past_the_limit(live: Served, path: str) -> None:
    """413 for a body that comes in chunks and does not say how long it is; one that fits gets to Gradio, which wants more."""

    def chunks(size: int) -> Any:
        yield b'{"data": ["'
        for _ in range(size // 65536):
            yield b"x" * 65536
        yield b'"]}'

    with httpx.Client(base_url=live.address) as client:
        headers = {"Content-Type": "application/json"}
        assert client.post(path, content=chunks(MAX_BODY + 65536), headers=headers).status_code == 413
        assert client.post(path, content=chunks(MAX_BODY - 131072), headers=headers).status_code in (400, 422)


def test_the_page_of_another_cannot_be_used(visit: Callable[[], Visitor]) -> None:
    """SEC-07: B cannot put events into A's page session, read what A's page is sent, keep it alive or cancel in it."""
    alice, bob = visit(), visit()
    assert alice.call("_load").success
    body = {"data": [None], "fn_index": 0, "session_hash": alice.page, "event_id": "x"}
    tries = [
        bob.client.post("/gradio_api/queue/join", json=body),
        bob.client.post("/gradio_api/cancel", json=body),
        bob.client.get("/gradio_api/queue/data", params={"session_hash": alice.page}),
        bob.client.get(f"/gradio_api/heartbeat/{alice.page}"),
        # The same said twice, or said so that two readers could read two things.
        bob.client.get(f"/gradio_api/queue/data?session_hash={bob.page}&session_hash={alice.page}"),
        bob.client.get(f"/gradio_api/queue/data?session_hash={alice.page}&session_hash={bob.page}"),
        bob.client.get(f"/gradio_api/queue/data?session%5Fhash={alice.page}"),
        bob.client.post("/gradio_api/queue/join", content=json.dumps(body).encode("utf-16"), headers=JSON),
        bob.client.post("/gradio_api/queue/join", content=_twice(bob.page, alice.page), headers=JSON),
    ]
    sentence = "This page belongs to another browser. Reload it."
    assert [(response.status_code, response.text) for response in tries] == [(403, sentence)] * len(tries)
    assert alice.call("_load").success, "A's page goes on"


JSON = {"Content-Type": "application/json"}


def _twice(first: str, second: str) -> bytes:
    return f'{{"data": [], "fn_index": 0, "session_hash": "{first}", "session_hash": "{second}"}}'.encode()


@pytest.mark.parametrize("page", ["", " ", "a b", "../x", "é", "x" * 65])
def test_a_page_has_a_name(visit: Callable[[], Visitor], page: str) -> None:
    """A page session that could be anybody's, or that breaks Gradio, is refused wherever it is named."""
    visitor = visit()
    tries = [
        visitor.join("_load", page=page),
        visitor.client.get("/gradio_api/queue/data", params={"session_hash": page}),
    ]
    assert [response.status_code for response in tries] == [400, 400]


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]},
        {"data": [{"path": "x", "url": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}]},
        {"data": ["hello", [{"content": [{"file": {"path": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}}}]}]]},
        {"data": [], "event_data": {"value": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}},
    ],
)  # fmt: skip
def test_a_request_names_no_file(visit: Callable[[], Visitor], live: Served, body: dict[str, Any]) -> None:
    """SEC-05: Gradio fetches or copies every file that a value names; no value of this page names one."""
    visitor = visit()
    for number in visitor.handlers.values():
        given = {"fn_index": number, "session_hash": visitor.page, **body}
        response = visitor.client.post("/gradio_api/queue/join", json=given)
        assert (response.status_code, response.text) == (400, "This page takes no files.")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"null", b"[" * 50_000, b'{"session_hash": 7}', b"\xff\xfe\x00"]
)
def test_a_body_that_is_none_is_a_client_error(live: Served, body: bytes) -> None:
    """Whatever is posted, nothing breaks."""
    response = httpx.post(f"{live.address}/gradio_api/queue/join", content=body, headers=JSON)
    assert 400 <= response.status_code < 500


def test_a_websocket_is_refused(live: Served) -> None:
    """No route is a websocket; the door is shut, not broken."""
    headers = {
        "Host": f"127.0.0.1:{live.port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    assert _head(live, "GET", "/gradio_api/queue/data", headers).status == 403
