"""The HTTP server: our routes, the guard in front of them, and the page behind it."""

from __future__ import annotations

import asyncio
import errno
import logging
import logging.handlers
import os
import signal
import socket
import tempfile
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from assistant.app import Assistant, state_folder
from assistant.errors import Forbidden, UserError
from assistant.guard import Guard
from assistant.identity import Identity
from assistant.sessions import Sessions
from assistant.settings import Settings
from assistant.streams import Streams

log = logging.getLogger(__name__)

CLOSE_SECONDS = 7
"""How long open responses may go on when the server ends: what answers are given (5 s), and the time to say how they ended."""


def build(assistant: Assistant, sessions: Sessions, streams: Streams | None = None) -> FastAPI:
    """The application: routes, page, guard."""
    from assistant.ui.mount import STATIC, mount

    streams = streams or Streams(assistant)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(UserError)
    def refused(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, Forbidden) else 400)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/page.js")
    def script() -> FileResponse:
        return FileResponse(STATIC / "page.js", media_type="text/javascript")

    @app.get("/page.css")
    def style() -> FileResponse:
        return FileResponse(STATIC / "page.css", media_type="text/css")

    @app.get("/files/{file}")
    def file(file: str, request: Request) -> Response:
        name, _, data = assistant.file(identity_of(request), file)
        safe = name.encode("ascii", "replace").decode().replace('"', "'").replace("\n", " ").replace("\r", " ")
        disposition = f'attachment; filename="{safe}"'
        return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": disposition})

    @app.get("/events")
    async def events(conversation: str, request: Request) -> StreamingResponse:
        """Server-sent events that wake a page: an answer started or finished in this conversation."""
        identity = identity_of(request)
        await asyncio.to_thread(assistant.running, identity, conversation)  # refuses before the response begins
        stream = streams.follow(identity, conversation)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    mount(app, assistant, lambda request: identity_of(request.request))
    app.add_middleware(Guard, sessions=sessions, host=assistant.settings.server.host)
    return app


def identity_of(request: Any) -> Identity:
    """Who the guard found to be asking."""
    identity = request.scope["state"]["identity"]
    if not isinstance(identity, Identity):
        raise Forbidden("This request did not come through the guard.")
    return identity


def run(home: Path, settings: Settings, *, browser: bool, report: Callable[[str], None]) -> None:
    """Take the port, put in place what is missing, serve until Ctrl-C or SIGTERM, and leave nothing half done."""
    listener = _listen(settings.server.host, settings.server.port)
    host, port = listener.getsockname()[:2]
    server_settings = settings.server.model_copy(update={"port": port})
    settings = settings.model_copy(update={"server": server_settings})
    home = state_folder(home)
    _log_to(home, settings)
    assistant = Assistant(home, settings)
    try:
        from assistant.setup import is_prepared, prepare

        if not is_prepared(assistant):
            prepare(assistant, report)
        sessions = Sessions(home)
        address = f"http://{_shown(host)}:{port}/?token={sessions.token}"

        def ready() -> None:
            report(f"Ready: {address}")
            report("This address makes the browser that opens it first the administrator. Ctrl-C stops the program.")
            if browser:
                webbrowser.open(address)

        with tempfile.TemporaryDirectory(prefix="assistant-") as folder:
            # Gradio may serve files from the working folder and keeps uploads in a cache: both are empty folders of ours.
            os.environ["GRADIO_TEMP_DIR"] = folder
            streams = Streams(assistant)
            config = uvicorn.Config(
                build(assistant, sessions, streams),
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
            # uvicorn ends on SIGTERM, then raises it again; by then it has done its work, and we still have to close.
            signal.signal(signal.SIGTERM, lambda *_: None)
            os.chdir(folder)
            try:
                _Server(config, assistant, streams, ready).run(sockets=[listener])
            finally:
                os.chdir(home)
    finally:
        assistant.close()
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and ends the answers and streams that it would otherwise wait for."""

    def __init__(
        self, config: uvicorn.Config, assistant: Assistant, streams: Streams, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._assistant = assistant
        self._streams = streams
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await asyncio.to_thread(self._ready)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close()
        await asyncio.gather(super().shutdown(sockets), asyncio.to_thread(self._assistant.finish))


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything slow is done; `UserError` where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named since asyncio turns Nagle's delay off (40 ms a response) only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # a port that is only bound can be had a second time
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} is taken by another program. Give another one: --port {port + 1}, or 0 for any."
            ) from None
        raise UserError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Give another --host or --port."
        ) from None
    except OverflowError:
        listener.close()
        raise UserError(f"A port is a number from 0 to 65535; {port} is not. Give another --port.") from None
    return listener


def _shown(host: str) -> str:
    """The address as a browser on this machine opens it."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _log_to(home: Path, settings: Settings) -> None:
    """Keep the program's log in the state folder, 5 files of 2 MB; it never holds texts of messages."""
    handler = logging.handlers.RotatingFileHandler(
        home / "assistant.log", maxBytes=2_000_000, backupCount=4, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("assistant")
    root.setLevel(settings.logging.level.upper())
    root.addHandler(handler)
    log.info("started %s", time.strftime("%Y-%m-%d"))
