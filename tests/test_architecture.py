"""What holds for the whole project, so that nothing is added half: contract tests, pages, renderers, docstrings, floors."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import plugins
from assistant import Plugin
from assistant.messages import EVENTS, Failure
from assistant.registry import Registry
from assistant.settings import PluginsSection
from assistant.testing import PluginContract

from .samples import SAMPLES

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("assistant", "plugins") for path in (ROOT / package).rglob("*.py"))
PLUGINS = [info.name for info in pkgutil.iter_modules(plugins.__path__)]
CONTRACT = frozenset(name for name, member in vars(Plugin).items() if inspect.isfunction(member))
MAX_LINES = 400
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"}
FLOORS = {
    "gradio": ("6.25", "CVE-2026-28414, CVE-2026-28416 and #13742"),
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747"),
    "transformers": ("5.3", "CVE-2026-1839, CVE-2026-4372"),
    "sentence-transformers": ("6.0", "#3801: a local folder could run code"),
    "langchain-core": ("1.3.3", "CVE-2025-68664, CVE-2026-34070, CVE-2026-44843"),
    "faiss-cpu": ("1.15.0", "deserialization fixes of 1.14.2 to 1.15.0"),
    "seqeval": ("1.2.2", "older ones have another interface"),
}


def plugin_classes(module: str) -> list[type[Plugin[Any]]]:
    found = vars(importlib.import_module(f"plugins.{module}")).values()
    return [
        kind
        for kind in found
        if isinstance(kind, type) and issubclass(kind, Plugin) and kind.__module__ == f"plugins.{module}"
    ]


def all_plugins() -> list[type[Plugin[Any]]]:
    return [kind for module in PLUGINS for kind in plugin_classes(module)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Plugins


@pytest.mark.parametrize("module", PLUGINS)
def test_every_plugin_keeps_the_contract_in_a_test(module: str) -> None:
    tests = vars(importlib.import_module(f"tests.plugins.test_{module}")).values()
    kits = [
        kit for kit in tests if isinstance(kit, type) and issubclass(kit, PluginContract) and kit is not PluginContract
    ]
    assert {kit.plugin for kit in kits} >= set(plugin_classes(module)) != set()
    assert all(kit.__name__.startswith("Test") for kit in kits), "pytest would not find it"


@pytest.mark.parametrize("kind", all_plugins(), ids=lambda kind: kind.name)
def test_every_plugin_has_a_page(kind: type[Plugin[Any]]) -> None:
    page = ROOT / "docs" / "plugins" / f"{kind.name}.md"
    assert page.is_file(), f"write {relative(page)}"
    assert page.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("kind", all_plugins(), ids=lambda kind: kind.name)
def test_every_option_and_setting_of_a_plugin_is_described(kind: type[Plugin[Any]]) -> None:
    for model in (kind.options_type, kind.config_type):
        for name, info in model.model_fields.items():
            assert (info.description or "").endswith("."), f"{model.__name__}.{name} needs a sentence"


@pytest.mark.parametrize("kind", all_plugins(), ids=lambda kind: kind.name)
def test_every_plugin_can_be_built_without_settings(kind: type[Plugin[Any]]) -> None:
    services = {"knowledge": object(), "models": object(), "log": object()}
    assert kind.name in Registry.load(PluginsSection(), services).loaded


# Events


@pytest.mark.parametrize("kind", EVENTS.values(), ids=EVENTS)
def test_every_event_has_a_renderer_and_a_sample(kind: type[Any]) -> None:
    from assistant.ui.render import RENDERERS, render

    assert kind in RENDERERS
    assert render(SAMPLES[kind]).strip()


def test_there_are_no_renderers_and_samples_of_other_things() -> None:
    from assistant.ui.render import RENDERERS

    assert set(RENDERERS) == set(SAMPLES) == set(EVENTS.values())


@pytest.mark.parametrize(
    "kind", [kind for kind in EVENTS.values() if kind is not Failure], ids=lambda kind: kind.__name__
)
def test_every_event_that_a_plugin_may_yield_is_exported_and_explained(kind: type[Any]) -> None:
    import assistant

    assert getattr(assistant, kind.__name__) is kind
    assert kind.__name__ in assistant.__all__
    guide = (ROOT / "docs" / "writing-plugins.md").read_text(encoding="utf-8")
    assert f"`{kind.__name__.lower()}`" in guide, "the plugin guide does not name it"


# Sources


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_module_is_one_noun_of_a_readable_length(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines"


def undocumented(body: list[ast.stmt], before: str = "", contract: frozenset[str] = frozenset()) -> Iterator[str]:
    """Public classes, functions and methods without a docstring.

    A plugin has its summary, and what it overrides is described in the contract.
    """
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        parents = [ast.unparse(base).partition("[")[0] for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if not ast.get_docstring(node) and node.name not in contract and "Plugin" not in parents:
            yield before + node.name
        if isinstance(node, ast.ClassDef):
            names = CONTRACT if "Plugin" in parents else frozenset()
            yield from undocumented(node.body, f"{before}{node.name}.", names)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_everything_public_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module itself"
    by_its_framework = frozenset({"upgrade"} if path.parent.name == "versions" else ())
    assert list(undocumented(tree.body, "", by_its_framework)) == []


def test_a_missing_docstring_is_seen() -> None:
    source = "class A:\n def b(self): ...\n def _c(self): ...\nclass P(Plugin[O]):\n def handle(self): ...\n def more(self): ..."
    assert list(undocumented(ast.parse(source).body)) == ["A", "A.b", "P.more"]


def test_what_a_plugin_author_imports_is_documented() -> None:
    import assistant

    exported = [getattr(assistant, name) for name in assistant.__all__]
    missing = [thing for thing in exported if inspect.isclass(thing) and not inspect.getdoc(thing)]
    assert missing == []
    assert assistant.__all__ == sorted(assistant.__all__)


# Dependencies


@pytest.mark.parametrize("package", FLOORS)
def test_nothing_older_than_its_last_hole_is_installed(package: str) -> None:
    """SEC-03."""
    floor, why = FLOORS[package]
    assert Version(version(package)) >= Version(floor), why


@pytest.mark.parametrize("package", FLOORS)
def test_nothing_older_than_its_last_hole_can_be_installed(package: str) -> None:
    """SEC-03: the floor stands in the project's own requirements."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [one for one in map(Requirement, project["dependencies"]) if one.name == package]
    assert len(found) == 1
    older = Version(FLOORS[package][0] + ".dev0")
    assert not found[0].specifier.contains(older, prereleases=True), f"{found[0]} lets {older} in"
