"""The stream that wakes a page: what happens in a conversation, and nothing left behind by a page that went away."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from fastapi import FastAPI

from assistant import streams
from assistant.app import Assistant
from assistant.server import build
from assistant.sessions import COOKIE, Sessions
from assistant.settings import PluginsSection, Settings
from tests.server.serving import PLUGINS
from tests.server.visitor import Visitor

KEEPALIVE = 0.5


@dataclass
class Inside:
    """A server in a thread of this process: what it holds can be looked at."""

    assistant: Assistant
    address: str
    port: int

    @property
    def listeners(self) -> int:
        """How many pages are subscribed."""
        return sum(len(found) for found in self.assistant._host._listeners.values())

    def wait_for_listener(self, conversation: str) -> None:
        """Return when somebody listens to that conversation."""
        _until(lambda: bool(self.assistant._host._listeners.get(conversation)))


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """A server with the plugins of the tests and no models: a command needs none."""
    home = tmp_path_factory.mktemp("events")
    assistant = Assistant(home, Settings(plugins=PluginsSection(folders=(PLUGINS,))))
    opened = streams.Streams(assistant)

    async def make() -> FastAPI:
        return build(assistant, Sessions(home), opened)

    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_INET, socket.SOCK_STREAM, 6) as listener:
        patch.setattr(streams, "KEEPALIVE_SECONDS", KEEPALIVE)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(asyncio.run(make()), log_level="error", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        _until(lambda: server.started)
        yield Inside(assistant, f"http://127.0.0.1:{port}", port)
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
    assistant.close()


def _until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def visitor(inside: Inside) -> Iterator[Visitor]:
    """A visitor to it."""
    with Visitor(inside.address) as made:
        yield made


def read(visitor: Visitor, conversation: str, until: Callable[[list[tuple[str, str]]], bool]) -> list[tuple[str, str]]:
    """(event, turn) of the stream as they come, comments as ("", text), until that is enough."""
    found: list[tuple[str, str]] = []
    with visitor.client.stream("GET", "/events", params={"conversation": conversation}, timeout=20) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((event, json.loads(line.removeprefix("data: "))["turn"]))
            elif line.startswith((":", "retry:")):
                found.append(("", line))
            if until(found):
                return found
    raise AssertionError(f"the stream ended: {found}")


def news(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is no comment."""
    return [entry for entry in found if entry[0]]


def test_it_wakes_when_an_answer_starts_and_ends(inside: Inside, visitor: Visitor) -> None:
    """A second window learns of a turn that the first one began, and that it is over."""
    conversation, _ = visitor.ask("/count 1 0")
    with Visitor(visitor.address) as second:
        second.client.cookies = visitor.client.cookies
        seen: list[tuple[str, str]] = []
        reader = threading.Thread(
            target=lambda: seen.extend(news(read(second, conversation, lambda found: len(news(found)) == 2)))
        )
        reader.start()
        inside.wait_for_listener(conversation)
        with visitor.asking("/count 3 0.1", conversation) as (_, answer):
            pass
        reader.join(10)
    assert seen == [("started", answer), ("finished", answer)]


def test_it_tells_of_the_answer_that_is_on_its_way(visitor: Visitor) -> None:
    """A page that is opened in mid-answer hears of it at once."""
    with visitor.asking("/count 10 0.1") as (conversation, answer), Visitor(visitor.address) as second:
        second.client.cookies = visitor.client.cookies
        found = read(second, conversation, lambda found: len(news(found)) == 2)
    assert found[0] == ("", "retry: 2000")
    assert news(found) == [("started", answer), ("finished", answer)]


def test_a_quiet_stream_is_kept_alive(visitor: Visitor) -> None:
    """Proxies cut what says nothing: a comment comes in time."""
    conversation, _ = visitor.ask("/count 1 0")
    started = time.monotonic()
    found = read(visitor, conversation, lambda found: len(found) == 3)
    assert list(found[1:]) == [("", ": still here")] * 2
    assert time.monotonic() - started < 4 * KEEPALIVE + 2


def test_it_hears_of_its_own_conversation_alone(inside: Inside, visitor: Visitor) -> None:
    """What happens elsewhere wakes nobody here."""
    quiet, _ = visitor.ask("/count 1 0")
    with Visitor(visitor.address) as second:
        second.client.cookies = visitor.client.cookies
        seen: list[tuple[str, str]] = []
        reader = threading.Thread(target=lambda: seen.extend(read(second, quiet, lambda found: len(found) == 3)))
        reader.start()
        inside.wait_for_listener(quiet)
        visitor.ask("/count 1 0")
        reader.join(10)
    assert news(seen) == []


def test_a_page_that_goes_away_is_forgotten(inside: Inside, visitor: Visitor) -> None:
    """REL-10: 200 clients that connect and vanish, some before the first byte: no listener and no task stays."""
    conversation, _ = visitor.ask("/count 1 0")
    _until(lambda: inside.listeners == 0)
    before = threading.active_count()
    request = (
        f"GET /events?conversation={conversation} HTTP/1.1\r\nHost: 127.0.0.1:{inside.port}\r\n"
        f"Cookie: {COOKIE}={visitor.client.cookies[COOKIE]}\r\n\r\n"
    ).encode()
    most = 0
    for number in range(200):
        with socket.create_connection(("127.0.0.1", inside.port), timeout=10) as connection:
            connection.sendall(request)
            if number % 4:
                assert connection.recv(64).startswith(b"HTTP/1.1 200")
            most = max(most, inside.listeners)
    assert most > 0, "nobody was ever subscribed: what was tested?"
    _until(lambda: inside.listeners == 0)
    assert inside.assistant._host._listeners == {}
    assert threading.active_count() <= before + 10, "the pool of threads is all that may have grown"


def test_an_answer_goes_on_without_its_page(inside: Inside, visitor: Visitor) -> None:
    """A closed tab does not end an answer."""
    assert visitor.join("_ask", "/count 8 0.1", None).status_code == 200
    with visitor.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": visitor.page}) as stream:
        for line in stream.iter_lines():
            if "n1" in line:
                break
    with Visitor(inside.address) as again:
        again.client.cookies = visitor.client.cookies
        (conversation,) = again.conversations()
        _until(lambda: "counted." in again.call("_wake", conversation).text)
