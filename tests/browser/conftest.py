"""A real Chromium on a live server; every test ends with a look at the console, at failed requests and at foreign ones."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from tests.server.serving import Served, serving

CHROMIUM = os.environ.get("ASSISTANT_CHROMIUM", "/usr/bin/chromium")
EXPECT_MILLISECONDS = 20_000
SIZE = {"width": 1200, "height": 800}

expect.set_options(timeout=EXPECT_MILLISECONDS)


@dataclass
class Site:
    """A server that can be ended and started again at the same address."""

    home: Path
    served: Served | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    port: int = 0

    def start(self) -> Served:
        """Start it, on the port it had."""
        self.served = self.stack.enter_context(serving(self.home, port=self.port))
        self.port = self.served.port
        return self.served

    def stop(self) -> None:
        """End it."""
        self.stack.close()

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What the database says."""
        connection = sqlite3.connect(f"file:{self.home / 'assistant.db'}?mode=ro", uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(module_home: Path) -> Iterator[Site]:
    """One server for a module's tests; visitors do not see each other."""
    made = Site(module_home)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module. Not for longer: while it is there, an event loop runs in this thread."""
    if not Path(CHROMIUM).exists():
        pytest.fail(f"No Chromium at {CHROMIUM}: install Debian's package chromium, or name one in ASSISTANT_CHROMIUM.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a browser did that it should not have; `down` says that the server was ended on purpose."""

    origin: str
    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    down: bool = False

    def over(self, page: Page) -> None:
        """Begin to watch a page."""
        page.on("console", lambda message: self.console.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("requestfailed", self._failed)
        page.on("request", self._requested)

    def _failed(self, request: Request) -> None:
        # A stream that is left is "aborted"; that is how streams end.
        if request.failure != "net::ERR_ABORTED":
            self.failed.append(f"{request.url} {request.failure}")

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.foreign.append(request.url)

    def check(self) -> None:
        """Fail where there was anything."""
        assert self.foreign == []
        assert self.dialogs == []
        if not self.down:
            assert self.console == []
            assert self.failed == []


@pytest.fixture
def watch(site: Site) -> Iterator[Watch]:
    """The watch over every page of a test."""
    made = Watch(site.address)
    yield made
    made.check()


Open = Callable[..., BrowserContext]


@pytest.fixture
def visitor(chromium: Browser, watch: Watch) -> Iterator[Open]:
    """`visitor()` is a browser profile of its own: a visitor nobody has seen before. Any option of a context may be given."""
    contexts: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        context = chromium.new_context(**({"locale": "en-US", "viewport": SIZE} | options))
        context.on("page", watch.over)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def screen(visitor: Open, site: Site) -> Screen:
    """A page that is open and ready, of a new visitor."""
    return Screen(visitor().new_page(), site).open()


class Screen:
    """The chat page as a person uses it."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self.site = site
        self.box = page.locator("#message textarea")
        self.answers = page.locator("#chat .answer")
        self.last = self.answers.last
        self.list = page.locator("#conversations label")
        self.send = page.locator("#send")
        self.stop = page.locator("#stop")

    def open(self, path: str = "/") -> Screen:
        """Go there and wait until the page has asked the server what it should show."""
        self.page.goto(f"{self.site.address}{path}")
        return self.ready()

    def ready(self) -> Screen:
        """Wait until the page has shown what it was asked for."""
        expect(self.page.locator("#here .here")).to_have_count(1)
        expect(self.box).to_be_visible()
        return self

    def ask(self, text: str) -> Screen:
        """Type and press Enter."""
        self.box.fill(text)
        self.box.press("Enter")
        return self

    def answered(self, count: int = 1) -> Screen:
        """Wait until so many answers are there and the last one is over."""
        expect(self.answers).to_have_count(count)
        expect(self.page.locator("#chat .answer.pending, #chat .answer.streaming")).to_have_count(0)
        expect(self.send).to_be_visible()
        return self

    @property
    def conversation(self) -> str:
        """The conversation that is shown."""
        return self.page.locator("#here .here").get_attribute("title") or ""

    def new(self) -> Screen:
        """Begin a new conversation."""
        self.page.locator("#new").click()
        expect(self.page.locator("#chat .empty")).to_be_visible()
        return self
