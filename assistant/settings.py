"""What the operator sets: one TOML file in the state folder, overlaid by the environment; unknown keys are refused.

The commented default file beside this module is the documentation of every setting.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.errors import UserError
from assistant.plugin import ModelName

PREFIX = "ASSISTANT_"
FILE = "settings.toml"
DEFAULT_FILE = Path(__file__).with_name("settings.default.toml")
_NOT_SETTINGS = {
    "ASSISTANT_HOME",
    "ASSISTANT_TEST_HOME",
    "ASSISTANT_CHROMIUM",
    "ASSISTANT_SCREENSHOT",
    "ASSISTANT_BENCHMARK_DATA",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """Where the page is served."""

    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    max_text: int = Field(default=20_000, ge=100)
    max_queue: int = Field(default=200, ge=1)
    max_upload_mb: int = Field(default=20, ge=1)


class Turn(_Section):
    """The budget of one answer."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    max_output_bytes: int = Field(default=262_144, ge=1024)


class PluginsSection(_Section):
    """Which plugins are loaded; every further key is the table of one plugin's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, dict[str, Any]]

    folders: tuple[Path, ...] = ()
    disabled: tuple[str, ...] = ()
    fallback: str = "support"

    def of(self, name: str) -> dict[str, Any]:
        """The table `[plugins.NAME]`, empty where it is not set."""
        return dict((self.model_extra or {}).get(name, {}))


class Knowledge(_Section):
    """How documents become chunks, and where questions are answered from."""

    collection: str = Field(default="shop", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    embedder: ModelName = "all-minilm-l6-v2"
    chunk_tokens: int = Field(default=200, ge=32)


class Logging(_Section):
    """What the program's log says."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Section):
    """Every setting, typed, with its default."""

    language: Literal["auto", "en", "zh"] = "auto"
    server: Server = Server()
    turn: Turn = Turn()
    plugins: PluginsSection = PluginsSection()
    knowledge: Knowledge = Knowledge()
    logging: Logging = Logging()


def home_folder(explicit: Path | None = None) -> Path:
    """The state folder: the argument, else `ASSISTANT_HOME`, else `var` in the working folder."""
    return (explicit or Path(os.environ.get("ASSISTANT_HOME") or "var")).absolute()


def load(home: Path) -> Settings:
    """The settings of a state folder; `UserError` names the file or variable, the key and what it should be."""
    path = home / FILE
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: expected TOML, found {error}. Mend that line, or delete the file.") from None
        except OSError as error:
            raise UserError(f"{path}: expected a file to read, found: {error.strerror}. Mend or move it.") from None
    origin: dict[str, str] = {}
    for variable, text in os.environ.items():
        if variable.startswith(PREFIX) and variable not in _NOT_SETTINGS:
            keys = variable.removeprefix(PREFIX).lower().split("__")
            origin[".".join(keys)] = variable
            _put(values, keys, text)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        where = next((variable for dotted, variable in origin.items() if _overlap(key, dotted)), str(path))
        misspelt = problem["loc"][0] == "plugins" and problem["type"] == "dict_type"
        if misspelt or problem["type"] == "extra_forbidden":
            raise UserError(f"{where}: there is no setting {key}. {DEFAULT_FILE.name} lists them all.") from None
        expected = problem["msg"].replace("valid tuple", "list, as in TOML").replace("valid dictionary", "table")
        raise UserError(f"{where}: {key}: {expected}, found {problem['input']!r}.") from None


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or a table around it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _put(values: dict[str, Any], keys: list[str], text: str) -> None:
    for key in keys[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            return
        values = below
    values[keys[-1]] = _parsed(text)


def _parsed(text: str) -> Any:
    """A list or table in the environment is written as in TOML; anything else stays a text for pydantic to read."""
    if text[:1] not in "[{":
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
