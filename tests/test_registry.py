"""Plugins are found and built; what is broken is named, and the rest goes on."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from assistant import Config, Event, Options, Plugin, Request, Role, Text, registry
from assistant.registry import Registry, Rejected
from assistant.settings import PluginsSection

BROKEN = Path(__file__).parent / "broken"
SERVICES = {"knowledge": object(), "models": object(), "log": object()}
GOOD = """
    from assistant import Options, Plugin, Text

    class Good(Plugin[Options]):
        name = "{name}"
        summary = "Says good."

        def handle(self, request, options):
            yield Text("good")
"""


class Given(Plugin[Options]):
    name = "given"
    summary = "Was given."

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("given")


@pytest.fixture(autouse=True)
def plugins_package() -> Iterator[None]:
    """Extra folders stay in the package's path for the life of a process: take them out again."""
    package = importlib.import_module("plugins")
    path, modules = list(package.__path__), set(sys.modules)
    yield
    package.__path__[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("plugins."):
            del sys.modules[name]
            vars(package).pop(name.partition(".")[2], None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes modules of plugins into a folder; `good` says good in every one."""

    def write(folder: str = "mine", **modules: str) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for name, text in modules.items():
            source = textwrap.dedent(GOOD.format(name=name) if text == "good" else text)
            (place / f"{name}.py").write_text(source, encoding="utf-8")
        return place

    return write


def load(*folders: Path, given: tuple[type[Plugin[Any]], ...] = (), **settings: Any) -> Registry:
    return Registry.load(PluginsSection(folders=folders, **settings), SERVICES, given=given)


def rejected(found: Registry, name: str) -> Rejected:
    one = [entry for entry in found.rejected if entry.name == name]
    assert len(one) == 1, found.rejected
    return one[0]


def test_those_that_came_with_the_program_are_there() -> None:
    found = load()
    assert {"hello", "support"} <= set(found.loaded)
    assert found.rejected == ()
    assert found.loaded["hello"].origin.endswith("plugins/hello.py")


def test_a_folder_of_ones_own_is_looked_through(write: Callable[..., Path]) -> None:
    found = load(write(one="good", two="good"))
    assert {"hello", "one", "two"} <= set(found.loaded)
    assert found.loaded["one"].origin.endswith("mine/one.py")


def test_given_ones_come_first(write: Callable[..., Path]) -> None:
    found = load(write(given="good"), given=(Given,))
    assert next(iter(found.loaded)) == "given"
    assert found.loaded["given"].origin == __name__
    assert "loaded already" in rejected(found, "given").reason


MODULE_FAULTS = {
    "syntax": ("def broken(:\n    pass", r"^SyntaxError: .*\(line 1 of bad\.py\)$"),
    "raises": ("\n1 / 0", r"^ZeroDivisionError: division by zero \(line 2 of bad\.py\)$"),
    "exits": ("import sys\nsys.exit(3)", r"^SystemExit: 3 \(line 2 of bad\.py\)$"),
    "misses a package": ("import no_such_package", r"^ModuleNotFoundError: No module named 'no_such_package'"),
    "misses a name": ("from assistant import Nonsense", r"^ImportError: cannot import name 'Nonsense'"),
    "raises the unspeakable": (
        "class Unspeakable(BaseException):\n    def __str__(self):\n        raise ValueError\n\nraise Unspeakable",
        r"Unspeakable.*\(line 5 of bad\.py\)$",
    ),
}


@pytest.mark.parametrize("fault", MODULE_FAULTS)
def test_a_module_that_cannot_be_imported_is_named_and_the_rest_goes_on(
    fault: str, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    text, reason = MODULE_FAULTS[fault]
    folder = write(bad=text, good="good")
    found = load(folder)
    assert "good" in found.loaded
    entry = rejected(found, "bad")
    assert entry.origin == str(folder / "bad")
    assert re.search(reason, entry.reason), entry.reason
    assert "plugin bad" in caplog.text


HEAD = "from assistant import Config, Options, Plugin, Text\nfrom pydantic import Field\n"
BODY = "\n    def handle(self, request, options):\n        yield Text('bad')\n"
CLASS = HEAD + "class Bad(Plugin[Options]):\n    name = 'bad'\n    summary = 'Is bad.'\n"
CLASS_FAULTS = {
    "a constructor that raises": (
        CLASS + "    def __init__(self):\n        raise OSError('no such device')\n" + BODY,
        r"^OSError: no such device \(line 7 of bad\.py\)$",
    ),
    "an unknown service": (
        CLASS + "    def __init__(self, knowlege): ...\n" + BODY,
        r"plugins\.bad\.Bad: expected constructor arguments among config, knowledge, log, models, found 'knowlege'",
    ),
    "any service": (
        CLASS + "    def __init__(self, **services): ...\n" + BODY,
        r"plugins\.bad\.Bad: expected constructor arguments among .*, found 'services'; rename or drop it",
    ),
    "no summary": (
        CLASS.replace("    summary = 'Is bad.'\n", "") + BODY,
        r"plugins\.bad\.Bad: expected a class attribute 'summary' with a text; add it",
    ),
    "an empty summary": (CLASS.replace("Is bad.", " ") + BODY, r"expected a class attribute 'summary'"),
    "no handle": (CLASS, r"plugins\.bad\.Bad: expected a method handle; write it"),
    "options without a description": (
        HEAD
        + "class Mine(Options):\n    limit: int = 3\n"
        + CLASS.removeprefix(HEAD)
        + "    options_type = Mine\n"
        + BODY,
        r"plugins\.bad\.Bad: expected a description on option 'limit': Field\(description=\.\.\.\)",
    ),
    "options of another kind": (
        CLASS + "    options_type = dict\n" + BODY,
        r"expected options_type to be a subclass of Options, found <class 'dict'>",
    ),
    "a config of another kind": (CLASS + "    config_type = int\n" + BODY, r"config_type to be a subclass of Config"),
    "one text for examples": (CLASS + "    examples = 'hello'\n" + BODY, r"examples to be a tuple of texts"),
    "a role of another kind": (CLASS + "    role = 'admin'\n" + BODY, r"expected role to be a Role, found 'admin'"),
    "no room for a request": (
        CLASS + "    max_concurrency = 0\n" + BODY,
        r"expected max_concurrency to be 1 or more, found 0",
    ),
    "no number of requests": (CLASS + "    max_concurrency = 'many'\n" + BODY, r"max_concurrency .* found 'many'"),
}


@pytest.mark.parametrize("fault", CLASS_FAULTS)
def test_a_class_that_breaks_the_contract_is_named_with_its_argument(fault: str, write: Callable[..., Path]) -> None:
    text, reason = CLASS_FAULTS[fault]
    found = load(write(bad=text, good="good"))
    assert "good" in found.loaded
    entry = rejected(found, "bad" if "name = 'bad'" in text else "Bad")
    assert entry.origin.endswith("mine/bad.py")
    assert re.search(reason, entry.reason), entry.reason


@pytest.mark.parametrize("name", ["Bad", "with-dash", "1st", "", "x" * 33, "with space"])
def test_a_name_must_be_one_that_can_be_typed_as_a_command(name: str) -> None:
    made = type("Named", (Given,), {"name": name})
    (entry,) = load(given=(made,)).rejected
    assert "expected a name of a-z and _" in entry.reason or "class attribute 'name'" in entry.reason


def test_the_plugins_that_the_tests_keep_broken() -> None:
    found = load(BROKEN)
    assert "half_way" in found.loaded
    expected = (
        "plugins.unloadable.Unloadable: expected constructor arguments among config, knowledge, log, models, "
        "found 'weather'; rename or drop it"
    )
    assert rejected(found, "unloadable").reason == expected


def test_the_second_of_a_name_is_refused_and_never_renamed(write: Callable[..., Path]) -> None:
    found = load(write(first="good", second=GOOD.format(name="first")))
    assert found.loaded["first"].origin.endswith("first.py")
    entry = rejected(found, "first")
    assert entry.origin.endswith("second.py")
    assert entry.reason == (
        f"a plugin of this name is loaded already, from {found.loaded['first'].origin}; rename one of them"
    )


def test_the_second_module_of_a_name_is_refused(write: Callable[..., Path]) -> None:
    first, second = write("first", twin="good"), write("second", twin="good")
    found = load(first, second)
    assert found.loaded["twin"].origin == str(first / "twin.py")
    entry = rejected(found, "twin")
    assert entry.origin == str(second / "twin")
    assert entry.reason == f"a module of this name is loaded already, from {first / 'twin.py'}"


def test_a_plugin_of_ones_own_cannot_take_a_built_in_name(write: Callable[..., Path]) -> None:
    found = load(write(other=GOOD.format(name="support")))
    assert found.loaded["support"].origin.endswith("plugins/support.py")
    assert "loaded already" in rejected(found, "support").reason


def test_a_disabled_plugin_is_not_there_and_says_so(write: Callable[..., Path]) -> None:
    found = load(write(one="good"), disabled=("one", "hello"))
    assert "one" not in found.loaded
    assert rejected(found, "one").reason == rejected(found, "hello").reason == "disabled in the settings"


def test_a_disabled_plugin_is_not_even_built(write: Callable[..., Path], tmp_path: Path) -> None:
    text = CLASS + f"    def __init__(self):\n        open({str(tmp_path / 'mark')!r}, 'w').close()\n" + BODY
    load(write(bad=text), disabled=("bad",))
    assert not (tmp_path / "mark").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = load(tmp_path / "nowhere")
    assert rejected(found, "nowhere") == Rejected(
        "nowhere", str(tmp_path / "nowhere"), "there is no such folder; mend [plugins] folders in the settings"
    )
    assert "hello" in found.loaded


class NerConfig(Config):
    labels: int = Field(default=3, ge=1)


class Ner(Plugin[Options]):
    name = "ner"
    summary = "Needs settings."
    config_type = NerConfig
    role = Role.AGENT

    def __init__(self, config: NerConfig, models: object) -> None:
        self.config, self.models = config, models

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        return []


def test_a_plugin_is_given_exactly_what_it_names() -> None:
    built = load(given=(Ner,), ner={"labels": 5}).loaded["ner"].plugin
    assert isinstance(built, Ner)
    assert built.config == NerConfig(labels=5)
    assert built.models is SERVICES["models"]


def test_a_wrong_value_in_its_settings_is_named() -> None:
    reason = rejected(load(given=(Ner,), ner={"labels": 0}), "ner").reason
    assert reason == "[plugins.ner] labels: Input should be greater than or equal to 1; mend it in the settings"


def test_an_unknown_key_in_its_settings_is_named() -> None:
    reason = rejected(load(given=(Ner,), ner={"lables": 3}), "ner").reason
    assert reason == "[plugins.ner] lables: Extra inputs are not permitted; mend it in the settings"


def test_only_a_modules_own_classes_are_its_plugins_and_each_once(write: Callable[..., Path]) -> None:
    imports = "from plugins.hello import Hello\n" + CLASS + BODY + "\nAlias = Bad\nclass _Hidden(Bad): ...\n"
    found = load(write(bad=imports, ba="from plugins.bad import Bad"))
    assert found.rejected == ()
    assert found.loaded["bad"].origin.endswith("bad.py")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if packages with these entry points were installed."""

    def install(**points: str) -> None:
        made = [EntryPoint(name, value, registry.GROUP) for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: made if group == registry.GROUP else [])

    return install


def test_an_installed_plugin_is_found_by_its_entry_point(installed: Callable[..., None]) -> None:
    installed(given=f"{__name__}:Given")
    found = load()
    assert isinstance(found.loaded["given"].plugin, Given)
    assert found.loaded["given"].origin == f"{__name__}:Given"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (f"{__name__}:SERVICES", "to be a Plugin, found"),
        (f"{__name__}:nothing", "AttributeError"),
        ("no_such_package:Plugin", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_an_entry_point_that_gives_no_plugin_is_named(value: str, reason: str, installed: Callable[..., None]) -> None:
    installed(odd=value)
    found = load()
    assert reason in rejected(found, "odd").reason
    assert "hello" in found.loaded


def test_ctrl_c_while_loading_ends_the_program(write: Callable[..., Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(write(bad="raise KeyboardInterrupt"))


def test_a_folder_of_one_registry_is_not_in_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "passing_by.py").write_text(
        "from assistant import Options, Plugin\n\n\nclass PassingBy(Plugin[Options]):\n"
        '    name = "passing_by"\n    summary = "Here once."\n\n    def handle(self, request, options):\n        return []\n'
    )
    services = {"knowledge": None, "models": None, "log": None}
    assert "passing_by" in Registry.load(PluginsSection(folders=(folder,)), services).loaded
    assert "passing_by" not in Registry.load(PluginsSection(), services).loaded
