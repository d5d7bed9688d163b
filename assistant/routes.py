"""Every HTTP route and what it takes to reach it; a path that is not listed does not exist (SEC-06).

Gradio brings some ninety routes. The page needs a dozen of them; the others read files, fetch addresses, run functions
by number or show what others did, and are refused for everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """Paths that match `pattern` need `action` of `assistant.identity.RULES`; None refuses them."""

    methods: frozenset[str]
    pattern: re.Pattern[str]
    action: str | None


def _rule(methods: str, pattern: str, action: str | None) -> Rule:
    return Rule(frozenset(methods.split()), re.compile(pattern), action)


RULES: tuple[Rule, ...] = (
    # Ours.
    _rule("GET", "/health", "page.read"),
    _rule("GET", "/events", "conversation.read"),
    _rule("GET", "/files/[0-9a-f]{32}", "file.read"),
    _rule("GET", r"/page\.(js|css)", "page.read"),
    # What the page loads, and the queue its events go through.
    _rule("GET HEAD", "/", "page.read"),
    _rule("GET", "/config/?", "page.read"),
    _rule("GET", r"/assets/[A-Za-z0-9_./@-]+", "page.read"),
    _rule("GET", r"/static/[A-Za-z0-9_./@-]+", "page.read"),
    _rule("GET", r"/(gradio_api/)?theme\.css", "page.read"),
    _rule("GET", r"/favicon\.ico", "page.read"),
    _rule("GET", r"/robots\.txt", "page.read"),
    _rule("GET", "/gradio_api/startup-events", "page.read"),
    _rule("GET", "/gradio_api/heartbeat/[A-Za-z0-9_-]+", "page.read"),
    _rule("POST", "/gradio_api/queue/join", "page.read"),
    _rule("GET", "/gradio_api/queue/data", "page.read"),
    _rule("POST", "/gradio_api/cancel", "page.read"),
    # Gradio's others, refused: reading files, fetching addresses, calling by name, log-in of its own, developer tools.
    _rule("GET HEAD", r"/gradio_api/(file=|proxy=).*", None),
    _rule(
        "GET POST",
        r"/gradio_api/(file|stream|upload_progress|upload|component_server|reset|process_recording)(/.*)?",
        None,
    ),
    _rule("GET POST", r"/gradio_api/(run|api|call)/.*", None),
    _rule("GET", r"/gradio_api/queue/status", None),
    _rule(
        "GET POST", r"/gradio_api/(info|openapi\.json|deep_link|app_id|user|token|login_check|dev/reload)(/.*)?", None
    ),
    _rule("GET POST", r"/gradio_api/(runs|run-history|profiling|vibe-.*|undo-vibe-edit|custom_component)(/.*)?", None),
    _rule("GET POST", r"/gradio_api/(mcp|monitoring)(/.*)?", None),
    _rule("GET POST", r"/(login|logout|svelte|pwa_icon|monitoring)(/.*)?", None),
    _rule("GET", r"/manifest\.json", None),
)


def find(method: str, path: str) -> Rule | None:
    """The rule for a request; None means that the path is not listed."""
    return next((rule for rule in RULES if method in rule.methods and rule.pattern.fullmatch(path)), None)
