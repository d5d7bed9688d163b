"""In front of every route: who asks, whether they may, and what every response must say."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Iterable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.errors import Forbidden
from assistant.identity import Identity, authorize
from assistant.routes import find
from assistant.sessions import COOKIE, LIFETIME_SECONDS, Sessions

log = logging.getLogger(__name__)

MAX_BODY = 2 * 1024 * 1024
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""What Gradio's page lives with. It sets its own `<base>`, hence base-uri 'self'; our script is a file, so no 'unsafe-eval'."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = re.compile("[A-Za-z0-9_-]{1,64}")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Guard:
    """ASGI middleware: identity by cookie, the one-time token, the route table, and other sites kept out."""

    def __init__(self, app: ASGIApp, *, sessions: Sessions, host: str) -> None:
        self._app = app
        self._sessions = sessions
        self._hosts = _LOOPBACK | {host} if host in _LOOPBACK else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a refusal, or pass on with `scope["state"]["identity"]` set."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route is a websocket
            await send({"type": "websocket.close"})
            return
        headers = Headers(scope=scope)
        known = self._sessions.read(_cookie(headers))
        identity = known or self._sessions.visitor()
        response, identity, body = await self._decide(scope, receive, headers, identity)
        fresh = identity if identity != known else None

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._finish(MutableHeaders(scope=message), fresh)
            await send(message)

        if response is not None:
            await response(scope, receive, answer)
            return
        scope.setdefault("state", {})["identity"] = identity
        try:
            await self._app(scope, _replayed(body, receive) if body is not None else receive, answer)
        except Exception:
            if begun:
                raise
            # Here and not at the server's outer edge: this answer, too, needs the headers that every response has.
            reference = secrets.token_hex(4)
            log.exception("%s %s failed, reference %s", scope["method"], scope["path"], reference)
            await PlainTextResponse(f"Something went wrong. Reference: {reference}", 500)(scope, receive, answer)

    async def _decide(
        self, scope: Scope, receive: Receive, headers: Headers, identity: Identity
    ) -> tuple[Response | None, Identity, bytes | None]:
        method, path = scope["method"], scope["path"]
        if not self._is_own(method, headers):
            return PlainTextResponse("This request came from another site.", 403), identity, None
        rule = find(method, path)
        if rule is None or rule.action is None:
            return PlainTextResponse("There is nothing here.", 404), identity, None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        try:
            if method == "GET" and path == "/" and "token" in query:
                return self._redeemed(query["token"][0], identity)
            authorize(identity, rule.action)
        except Forbidden as error:
            return PlainTextResponse(str(error), 403), identity, None
        pages = [*query.get("session_hash", []), *([path.rpartition("/")[2]] if "/heartbeat/" in path else [])]
        body = None
        if method == "POST":
            body = await _body(receive, headers)
            if body is None:
                return PlainTextResponse(f"A request may have {MAX_BODY} bytes.", 413), identity, None
            document = _parsed(body)
            if _names_file(document):
                return PlainTextResponse("This page takes no files.", 400), identity, None
            pages += _pages_in(document)
        if not all(_PAGE.fullmatch(page) for page in pages):
            return PlainTextResponse("A page session has a name of letters and digits.", 400), identity, None
        if not all(self._sessions.bind_page(page, identity) for page in pages):
            return PlainTextResponse("This page belongs to another browser. Reload it.", 403), identity, None
        return None, identity, body

    def _redeemed(self, token: str, identity: Identity) -> tuple[Response, Identity, None]:
        if identity.role.name != "ADMIN":
            identity = self._sessions.redeem(token, identity)
        return RedirectResponse("/", 303), identity, None

    def _is_own(self, method: str, headers: Headers) -> bool:
        """Whether the request may be acted on: our own page's, addressed to a name that is ours (DNS rebinding)."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        try:
            name, origin_host = urlsplit(f"//{host}").hostname, urlsplit(origin).netloc if origin is not None else host
        except ValueError:  # a name with a broken [IPv6] address in it
            return False
        if self._hosts is not None and name not in self._hosts:
            return False
        return method in ("GET", "HEAD") or origin_host == host

    def _finish(self, headers: MutableHeaders, fresh: Identity | None) -> None:
        for name, value in HEADERS.items():
            headers[name] = value
        for name in ("access-control-allow-origin", "access-control-allow-credentials"):
            if name in headers:
                del headers[name]
        if fresh is not None:
            cookie: SimpleCookie = SimpleCookie()
            cookie[COOKIE] = self._sessions.sign(fresh)
            attributes: dict[str, Any] = {"path": "/", "httponly": True, "samesite": "Lax", "max-age": LIFETIME_SECONDS}
            for name, value in attributes.items():
                cookie[COOKIE][name] = value
            headers.append("set-cookie", cookie.output(header="").strip())


def _cookie(headers: Headers) -> str | None:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _parsed(body: bytes) -> Any:
    """The JSON of a body; what is none is Gradio's to refuse."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _pages_in(document: Any) -> Iterable[str]:
    """The page session that a body names."""
    page = document.get("session_hash") if isinstance(document, dict) else None
    return [page] if isinstance(page, str) else []


def _names_file(document: Any) -> bool:
    """Whether there is a file in Gradio's form anywhere in it: Gradio would fetch its address, or copy it from the disk."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "path" in value:
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False


async def _body(receive: Receive, headers: Headers) -> bytes | None:
    """The whole body, or None where it is longer than it may be; what the header claims is not trusted."""
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY:
        return None
    parts = bytearray()
    while True:
        message = await receive()
        parts += message.get("body", b"")
        if len(parts) > MAX_BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
