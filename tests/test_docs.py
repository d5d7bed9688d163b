"""What the documentation shows is run, and what it tabulates is what the code says."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assistant.cli import app
from assistant.plugin import Plugin
from assistant.reference import BLOCKS, stale
from assistant.testing import Chat, PluginContract

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def plugin_in(page: Path) -> type[Plugin[Any]]:
    """The plugin that the first Python block of a page defines."""
    code = _PYTHON.search(page.read_text(encoding="utf-8"))
    assert code
    module = types.ModuleType("shown")
    exec(compile(code[1], str(page), "exec"), module.__dict__)
    return next(
        v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Plugin) and v.__module__ == "shown"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/writing-plugins.md"])
def test_shown_plugin_keeps_the_contract(page: str) -> None:
    class Kit(PluginContract):
        plugin = plugin_in(ROOT / page)

    for name in (name for name in dir(Kit) if name.startswith("test_")):
        getattr(Kit(), name)()


def test_readme_plugin_has_ten_lines_and_answers(chat: Callable[..., Chat]) -> None:
    page = ROOT / "README.md"
    code = _PYTHON.search(page.read_text(encoding="utf-8"))
    assert code
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    assert chat(plugin_in(page)).ask("/words how many are these?").text == "4 words"


def test_guide_shows_what_its_plugin_says(chat: Callable[..., Chat]) -> None:
    page = ROOT / "docs" / "writing-plugins.md"
    assert chat(plugin_in(page)).ask("hello there").text in page.read_text(encoding="utf-8")


def test_generated_tables_are_fresh() -> None:
    assert stale(app) == []


def test_every_kind_of_table_is_used() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {what for what in ["commands", *BLOCKS] if f"<!-- begin: {what}" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
