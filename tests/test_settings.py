"""One file and the environment over it; every mistake is named."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from assistant.errors import UserError
from assistant.settings import DEFAULT_FILE, FILE, PREFIX, Settings, home_folder, load


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine happens to set must not decide these tests."""
    for variable in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(variable)


def write(home: Path, text: str) -> Path:
    (home / FILE).write_text(text, encoding="utf-8")
    return home


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every setting, dotted."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def test_the_default_file_says_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, DEFAULT_FILE.read_text(encoding="utf-8"))
    assert load(tmp_path) == Settings()


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()


@pytest.mark.parametrize("key", list(keys(Settings)))
def test_the_default_file_has_every_setting(key: str) -> None:
    values: Any = tomllib.loads(DEFAULT_FILE.read_text(encoding="utf-8"))
    for part in key.split("."):
        assert part in values, f"{DEFAULT_FILE.name} lacks {key}"
        values = values[part]


@pytest.mark.parametrize("key", list(keys(Settings)))
def test_the_default_file_explains_every_setting(key: str) -> None:
    name = key.rpartition(".")[2]
    lines = [line for line in DEFAULT_FILE.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name} =")]
    assert lines, f"{DEFAULT_FILE.name} lacks {key}"
    assert all("#" in line for line in lines), f"{key} has no comment"


def test_the_file_changes_what_it_names_alone(tmp_path: Path) -> None:
    found = load(write(tmp_path, "[server]\nport = 9000\n"))
    assert found.server.port == 9000
    assert found.server.host == Settings().server.host


def test_the_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[server]\nport = 9000\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("ASSISTANT_SERVER__PORT", "9001")
    monkeypatch.setenv("ASSISTANT_LANGUAGE", "zh")
    found = load(tmp_path)
    assert (found.server.port, found.server.host, found.language) == (9001, "0.0.0.0", "zh")


def test_a_list_in_the_environment_is_written_as_in_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSISTANT_PLUGINS__FOLDERS", '["/a", "/b c"]')
    assert load(tmp_path).plugins.folders == (Path("/a"), Path("/b c"))


def test_a_plugins_own_settings_are_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "[plugins.ner]\nlabels = 3\n")
    monkeypatch.setenv("ASSISTANT_PLUGINS__NER__MODEL", "tagger")
    plugins = load(tmp_path).plugins
    assert plugins.of("ner") == {"labels": 3, "model": "tagger"}
    assert plugins.of("other") == {}


def test_variables_of_other_purpose_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSISTANT_HOME", "/somewhere")
    monkeypatch.setenv("ASSISTANTS", "3")
    assert load(tmp_path) == Settings()


MISTAKES = {
    "[server]\nprt = 1": r"settings\.toml: there is no setting server\.prt\. settings\.default\.toml lists them all",
    "[servr]\nport = 1": r"settings\.toml: there is no setting servr\.",
    'colour = "red"': r"settings\.toml: there is no setting colour\.",
    '[plugins]\nfallbak = "hello"': r"settings\.toml: there is no setting plugins\.fallbak\.",
    '[server]\nport = "x"': r"settings\.toml: server\.port: .*valid integer.*, found 'x'",
    "[server]\nport = 99999": r"settings\.toml: server\.port: .*less than or equal to 65535, found 99999",
    "server = 3": r"settings\.toml: server: .*table.*, found 3",
    'language = "fr"': r"language: .*'auto', 'en' or 'zh', found 'fr'",
    "[turn]\ntimeout_seconds = 0": r"turn\.timeout_seconds: .*greater than 0, found 0",
    '[plugins]\nfolders = "x"': r"plugins\.folders: .*list, as in TOML, found 'x'",
    '[knowledge]\ncollection = "My Shop"': r"knowledge\.collection: .*found 'My Shop'",
    "port 8000": r"settings\.toml: expected TOML, found .*line 1.*Mend that line, or delete the file",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text.replace("\n", " "))
def test_a_mistake_in_the_file_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=MISTAKES[text]):
        load(write(tmp_path, text))


VARIABLES = {
    ("SERVER__PRT", "1"): r"^ASSISTANT_SERVER__PRT: there is no setting server\.prt\.",
    ("SERVR__PORT", "1"): r"^ASSISTANT_SERVR__PORT: there is no setting servr\.",
    ("SERVER__PORT", "x"): r"^ASSISTANT_SERVER__PORT: server\.port: .*found 'x'",
    ("SERVER__PORT__NUMBER", "1"): r"^ASSISTANT_SERVER__PORT__NUMBER: server\.port: ",
    ("SERVER", "x"): r"^ASSISTANT_SERVER: server: .*found 'x'",
    ("PLUGINS__FALLBAK", "x"): r"^ASSISTANT_PLUGINS__FALLBAK: there is no setting plugins\.fallbak\.",
    ("PLUGINS__FOLDERS", "/a"): r"^ASSISTANT_PLUGINS__FOLDERS: plugins\.folders: .*list, as in TOML, found '/a'",
}


@pytest.mark.parametrize(("name", "value"), list(VARIABLES))
def test_a_mistake_in_the_environment_is_named(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(UserError, match=VARIABLES[name, value]):
        load(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"settings\.toml: expected TOML"):
        load(tmp_path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match=r"settings\.toml: expected a file to read, found: Is a directory"):
        load(tmp_path)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]


def test_the_state_folder_is_the_argument_else_the_environment_else_var(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert home_folder() == tmp_path / "var"
    monkeypatch.setenv("ASSISTANT_HOME", "elsewhere")
    assert home_folder() == tmp_path / "elsewhere"
    assert home_folder(Path("/given")) == Path("/given")
    monkeypatch.setenv("ASSISTANT_HOME", "")
    assert home_folder() == tmp_path / "var"
