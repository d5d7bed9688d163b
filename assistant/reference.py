"""Writes the tables of the documentation from the code, between marks in hand-written pages, and says which are stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from typer import Typer

from assistant.messages import EVENTS
from assistant.registry import Registry
from assistant.settings import DEFAULT_FILE, PluginsSection

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"<!-- begin: (?P<what>[a-z_ ]+) -->\n.*?<!-- end -->", re.DOTALL)


def write(app: Typer) -> list[str]:
    """Fill the marked blocks of every page in docs, `app` being the command line; the names of the pages that changed."""
    changed = []
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = _filled(before, app)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(str(page.relative_to(DOCS.parent)))
    return changed


def stale(app: Typer) -> list[str]:
    """The pages whose blocks are not what the code says now."""
    pages = sorted(DOCS.rglob("*.md"))
    return [str(page.relative_to(DOCS.parent)) for page in pages if (t := page.read_text("utf-8")) != _filled(t, app)]


def _filled(page: str, app: Typer) -> str:
    def block(match: re.Match[str]) -> str:
        what, _, argument = match["what"].partition(" ")
        return f"<!-- begin: {match['what']} -->\n{_commands(app) if what == 'commands' else BLOCKS[what](argument)}\n<!-- end -->"

    return _BLOCK.sub(block, page)


def _commands(app: Typer) -> str:
    """The help of every command, as the terminal prints it."""
    import typer.main

    root = typer.main.get_command(app)
    parts = []
    for path, command in _walk(root, ("assistant",)):
        context = command.make_context(path[-1], [], resilient_parsing=True)
        context.info_name, context.terminal_width = " ".join(path), 80  # the same on every terminal
        parts.append(f"### {' '.join(path)}\n\n```text\n{command.get_help(context).strip()}\n```")
    return "\n\n".join(re.sub(r"[ \t]+$", "", part, flags=re.MULTILINE) for part in parts)


def _walk(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    below = [c for c in getattr(command, "commands", {}).values() if not c.hidden]
    if not below:
        return [(path, command)]
    return [pair for child in below for pair in _walk(child, (*path, child.name))]


def _events(_: str) -> str:
    rows = ["| type | fields | what it is |", "|---|---|---|"]
    for name, kind in EVENTS.items():
        names = ", ".join(f"`{field.name}`" for field in fields(kind) if field.name != "data")
        rows.append(f"| `{name}` | {names} | {_first_paragraph(kind)} |")
    return "\n".join(rows)


def _plugins(_: str) -> str:
    rows = ["| plugin | for | what it does |", "|---|---|---|"]
    for name, plugin in _shipped().items():
        rows.append(f"| [{name}](plugins/{name}.md) | {plugin.role.name.lower()} | {plugin.summary} |")
    return "\n".join(rows)


def _plugin(name: str) -> str:
    plugin = _shipped()[name]
    rows = [f"{plugin.summary} Command `/{name}`, for the role {plugin.role.name.lower()}.", ""]
    if not plugin.options_type.model_fields:
        return "\n".join([*rows, "It has no options."])
    rows += ["| option | type | default | what it sets |", "|---|---|---|---|"]
    for option, info in plugin.options_type.model_fields.items():
        default = "required" if info.default is PydanticUndefined else f"`{info.default!r}`"
        kind = getattr(info.annotation, "__name__", str(info.annotation))
        rows.append(f"| `{option}` | {kind} | {default} | {info.description} |")
    return "\n".join(rows)


def _settings(_: str) -> str:
    return f"```toml\n{DEFAULT_FILE.read_text(encoding='utf-8').strip()}\n```"


def _shipped() -> dict[str, Any]:
    """The plugin classes of this repository, by name; nothing of them is opened."""
    registry = Registry.load(PluginsSection(), {"knowledge": None, "models": None, "log": None})
    return {name: type(loaded.plugin) for name, loaded in sorted(registry.loaded.items())}


def _first_paragraph(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")


BLOCKS: dict[str, Callable[[str], str]] = {
    "events": _events,
    "plugins": _plugins,
    "plugin": _plugin,
    "settings": _settings,
}
