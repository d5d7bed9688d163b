"""The page on the server's application: Gradio's defaults are hardened here and nowhere else (SEC-04)."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from assistant.app import Assistant
from assistant.ui.head import Head
from assistant.ui.page import Identify, Page

STATIC = Path(__file__).parent / "static"


def mount(app: FastAPI, assistant: Assistant, identify: Identify) -> FastAPI:
    """`app` with the page at `/`; who may reach which of Gradio's routes is decided before it, in `assistant.routes`."""
    server = assistant.settings.server
    blocks = Page(assistant, identify).build()
    blocks.queue(api_open=False, max_size=server.max_queue, default_concurrency_limit=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=server.host,
        server_port=server.port,
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        allowed_paths=[],
        blocked_paths=[str(assistant.home)],
        show_error=False,
        max_file_size=server.max_upload_mb * 1024 * 1024,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    # Only a launched app checks which files a request may name; one that is mounted copies any it is told to.
    blocks.has_launched = True
    app.add_middleware(Head)
    return app
