"""The hardened launch profile is the only way the page is started (SEC-04): what the live application says of itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import psutil
import pytest
from fastapi import FastAPI
from starlette.routing import Mount

import assistant
from assistant.settings import Settings
from tests.server.serving import Served, serving
from tests.server.visitor import Visitor

SOURCE = Path(assistant.__file__).parent


@pytest.fixture(scope="module")
def blocks(application: FastAPI) -> gr.Blocks:
    """Gradio's blocks as they are mounted."""
    mounted = next(route.app for route in application.routes if isinstance(route, Mount))
    return mounted.get_blocks()  # type: ignore[attr-defined,no-any-return]  # gradio.routes.App


def _chat(blocks: gr.Blocks) -> gr.Chatbot:
    return next(block for block in blocks.blocks.values() if isinstance(block, gr.Chatbot))


def test_uploads_have_a_limit(blocks: gr.Blocks) -> None:
    """SEC-04: Gradio's default is none."""
    assert blocks.max_file_size == 20 * 1024 * 1024


def test_the_queue_has_a_length(blocks: gr.Blocks) -> None:
    """SEC-04: Gradio's default is none; no route of the queue is open to callers without a page."""
    assert blocks._queue.max_size == Settings().server.max_queue
    assert blocks.api_open is False


def test_nothing_is_watched_or_reported(blocks: gr.Blocks) -> None:
    """SEC-04: monitoring (on unless it is refused) and analytics are off, and so is the record of runs."""
    assert blocks.enable_monitoring is False
    assert blocks.analytics_enabled is False
    assert blocks.run_history is False


def test_no_file_is_allowed_and_the_state_folder_is_blocked(blocks: gr.Blocks, application_home: Path) -> None:
    """SEC-04: nothing is served by path, and the state folder not even by mistake."""
    assert blocks.allowed_paths == []
    assert str(application_home) in blocks.blocked_paths


def test_files_that_a_request_names_are_checked(blocks: gr.Blocks) -> None:
    """A mounted application would copy any file of the machine into its cache; a launched one asks first."""
    assert blocks.has_launched is True


def test_there_is_no_tunnel(blocks: gr.Blocks) -> None:
    """SEC-04: the page cannot be shared: it is never launched, and no setting of ours is called so."""
    assert not getattr(blocks, "share", False)
    assert not getattr(blocks, "is_running", False), "blocks.launch() was called"
    assert [call for call in _calls() if call.endswith(".launch")] == []


def test_errors_are_not_shown_in_full(blocks: gr.Blocks) -> None:
    """A traceback is the operator's."""
    assert blocks.show_error is False


def test_the_extras_are_off(blocks: gr.Blocks) -> None:
    """SEC-04: no links in the footer, no rendering by node, no MCP, no installable page, no log-in of Gradio's."""
    assert blocks.footer_links == []
    assert blocks.ssr_mode is False
    assert not getattr(blocks, "mcp_server_obj", None)
    assert blocks.pwa is False
    assert blocks.auth is None


def test_the_chat_sanitizes(blocks: gr.Blocks) -> None:
    """SEC-04: Gradio's own sanitizer stays on behind ours, and custom tags are not let through."""
    assert _chat(blocks).sanitize_html is True
    assert _chat(blocks).allow_tags is False


def test_no_event_is_an_api(blocks: gr.Blocks) -> None:
    """No handler is offered by name, and none takes values that Gradio resolved into files."""
    handlers = list(blocks.fns.values())
    assert len(handlers) >= 9
    assert {handler.api_visibility for handler in handlers} == {"private"}
    assert {handler.queue for handler in handlers} == {True}, "an event outside the queue is called without its limits"


def test_nothing_comes_from_elsewhere(blocks: gr.Blocks) -> None:
    """The theme's fonts are the system's, and the page names no other host."""
    assert blocks.theme is not None
    assert blocks.theme._stylesheets == []
    assert "googleapis" not in blocks.theme_css


FORBIDDEN = (
    "gr.load", "gr.FileExplorer", "gr.File", "gr.UploadButton", "gr.Image", "gr.MultimodalTextbox", "gr.HTML", "gr.Code",
    "gr.DownloadButton", "gr.ParamViewer", "gr.set_static_paths",
)  # fmt: skip


def _calls() -> Iterator[str]:
    """Every call in our source, by the dotted name it is written with."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func)


def test_no_component_that_reads_files_is_used() -> None:
    """Components that turn strings into files, or fetch addresses, are not used at all."""
    calls = set(_calls())
    assert "gr.Chatbot" in calls, "the search does not see the page"
    assert calls & set(FORBIDDEN) == set()


def test_the_server_listens_on_this_machine_alone() -> None:
    """SEC-04: another address is the operator's decision."""
    assert Settings().server.host == "127.0.0.1"


def test_the_process_works_in_an_empty_folder_of_its_own(live: Served, visit: Callable[[], Visitor]) -> None:
    """SEC-05: Gradio may serve what lies in the working folder and in its cache: both are one folder, with nothing in it."""
    with visit() as visitor:
        assert visitor.call("_load").success
    process = psutil.Process(live.process.pid)
    folder = Path(process.cwd())
    assert folder.name.startswith("assistant-")
    assert folder.stat().st_mode & 0o077 == 0
    assert process.environ().get("GRADIO_SHARE") is None
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert {address.laddr.ip for address in process.net_connections() if address.status == "LISTEN"} == {"127.0.0.1"}


HOSTILE_ENVIRONMENT = {
    "GRADIO_SHARE": "True",
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_RUN_HISTORY": "True",
    "GRADIO_SSR_MODE": "True",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_WATCH_DIRS": "/",
}


def test_the_environment_cannot_soften_it(prepared_home: Path) -> None:
    """SEC-04: Gradio reads a dozen variables; none of them opens the page."""
    with serving(prepared_home, more=HOSTILE_ENVIRONMENT) as served, Visitor(served.address) as visitor:
        config = visitor.client.get("/config").json()
        listening = [c.laddr.ip for c in psutil.Process(served.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]
    assert config["analytics_enabled"] is False
    assert config["mcp_server"] is False
    assert config["run_history"] is False
