"""A browser without a screen: a cookie, a page session, and Gradio's queue protocol by hand."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx


@dataclass(frozen=True)
class Outcome:
    """What a handler of the page did: everything it sent, and how it ended."""

    status: int
    raw: str
    success: bool
    error: str = ""

    @property
    def text(self) -> str:
        """All it sent, entities and escapes undone, to look for what must (not) be in it."""
        return unescape(self.raw.replace('\\"', '"'))


@dataclass
class Visitor:
    """One visitor. `page` is the page session that Gradio's script would have invented."""

    address: str
    page: str = field(default_factory=lambda: secrets.token_hex(6))

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.address, timeout=30)
        assert self.client.get("/").status_code == 200
        self.handlers = handlers(self.client)

    def close(self) -> None:
        """Let go of the connections."""
        self.client.close()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def become_admin(self, token: str) -> None:
        """Redeem the one-time token."""
        response = self.client.get("/", params={"token": token})
        assert response.status_code == 303, response.text

    def join(
        self, handler: str, *data: Any, event: Any = None, page: str | None = None, query: dict[str, str] | None = None
    ) -> httpx.Response:
        """Put an event into the queue; `query` is what the page's own address has behind the question mark."""
        body = {
            "data": list(data),
            "fn_index": self.handlers[handler],
            "session_hash": self.page if page is None else page,
            "trigger_id": None,
            "event_data": event,
        }
        return self.client.post("/gradio_api/queue/join", json=body, params=query)

    def call(self, handler: str, *data: Any, event: Any = None, query: dict[str, str] | None = None) -> Outcome:
        """Run a handler of the page to its end."""
        joined = self.join(handler, *data, event=event, query=query)
        if joined.status_code != 200:
            return Outcome(joined.status_code, joined.text, False, joined.text)
        lines: list[str] = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.page}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    lines.append(line.removeprefix("data:").strip())
        last = next(json.loads(line) for line in reversed(lines) if '"process_completed"' in line)
        return Outcome(200, "\n".join(lines), bool(last["success"]), str((last["output"] or {}).get("error") or ""))

    def ask(self, text: str, conversation: str = "") -> tuple[str, Outcome]:
        """Ask and wait for the answer: (conversation, what came)."""
        outcome = self.call("_ask", text, conversation or None)
        return shown_conversation(outcome.text), outcome

    def conversations(self) -> list[str]:
        """The ids that this visitor's list shows."""
        first = json.loads(next(line for line in self.call("_load").raw.splitlines() if '"choices"' in line))
        return [identifier for _, identifier in first["output"]["data"][0]["choices"]]

    @contextmanager
    def asking(self, text: str, conversation: str = "") -> Iterator[tuple[str, str]]:
        """A question whose answer is being made inside the block: (conversation, answer)."""
        assert self.join("_ask", text, conversation or None).status_code == 200
        marks: list[tuple[str, str]] = []
        begun = threading.Event()

        def follow() -> None:
            with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.page}) as stream:
                for line in stream.iter_lines():
                    text = unescape(line.replace('\\"', '"'))
                    if not marks and (turn := _between(text, 'class="following" title="', '"')):
                        marks.append((shown_conversation(text), turn))
                        begun.set()

        def read() -> None:
            with contextlib.suppress(httpx.HTTPError):  # the server may be ended inside the block
                follow()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert begun.wait(20), "the answer did not begin"
        yield marks[0]
        reader.join(30)
        assert not reader.is_alive(), "the answer did not end"


def handlers(client: httpx.Client) -> dict[str, int]:
    """Every handler of the live page: its name and the number that a request would call it by."""
    config = client.get("/config").json()
    return {entry["api_name"]: entry["id"] for entry in config["dependencies"]}


def shown_conversation(text: str) -> str:
    """The conversation that a page's update shows."""
    return _between(text, 'class="here" title="', '"')


def _between(text: str, before: str, after: str) -> str:
    _, found, rest = text.partition(before)
    return rest.partition(after)[0] if found else ""
