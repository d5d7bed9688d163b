"""A live server for a whole module, visitors to it, and the application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from tests.server.serving import Served, serving
from tests.server.visitor import Visitor


@pytest.fixture(scope="module")
def live(module_home: Path) -> Iterator[Served]:
    """A running server with the demo shop and the plugins of the tests."""
    with serving(module_home) as served:
        yield served


@pytest.fixture
def visit(live: Served) -> Iterator[Callable[[], Visitor]]:
    """`visit()` is one more visitor whom the server has not seen before."""
    made: list[Visitor] = []

    def new() -> Visitor:
        made.append(Visitor(live.address))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def application_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of `application`."""
    return tmp_path_factory.mktemp("application")


@pytest.fixture(scope="module")
def application(application_home: Path) -> Iterator[FastAPI]:
    """The application as the server builds it, in this process, on an empty state folder."""
    from assistant.app import Assistant
    from assistant.server import build
    from assistant.sessions import Sessions
    from assistant.settings import Settings

    assistant = Assistant(application_home, Settings())

    async def make() -> FastAPI:
        return build(assistant, Sessions(application_home))

    yield asyncio.run(make())  # where no loop runs, Gradio makes several that it never closes
    assistant.close()
