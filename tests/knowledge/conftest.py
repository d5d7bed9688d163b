"""A library on an empty state folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.knowledge.library import Library

from .doubles import HashEmbedder, open_library


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def library(home: Path, embedder: HashEmbedder) -> Iterator[Library]:
    library = open_library(home, embedder=embedder)
    yield library
    library.close()
    library._database.close()


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    path = tmp_path / "faq.csv"
    path.write_text(
        "id,question,answer,category\n"
        "refund-time,How long does a refund take?,Refunds arrive within five working days.,refunds\n"
        "track,Where is my parcel?,Follow the tracking link in the shipping e-mail.,delivery\n"
        'pay,Which cards do you accept?,"Visa, Mastercard and Maestro.",payment\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "returns.md"
    path.write_text(
        "---\nlayout: page\n---\n# Returns\n\nYou may send goods back.\n\n## Return period\n\nThirty days from delivery.\n\n"
        "### Mattresses\n\nA mattress may be tried for sixty nights.\n\n## Costs\n\nPostage is four euros.\n",
        encoding="utf-8",
    )
    return path
