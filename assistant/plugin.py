"""The contract of a plugin: a name, a summary, and one method that yields events."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

from assistant.errors import PluginError, UserError
from assistant.identity import Role
from assistant.messages import Action, Event, Request

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
"""A `Config` field of this type names a model that must be in place before the plugin opens."""


class Options(BaseModel):
    """What a user may set for one request. Every field becomes a control, a flag and an argument of the tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Config(BaseModel):
    """What the operator sets once, in `[plugins.NAME]` of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


O = TypeVar("O", bound=Options)  # noqa: E741 - the contract's name for it


class Plugin(ABC, Generic[O]):
    """Answers messages. Write `name`, `summary` and `handle`; the rest has defaults.

    The constructor's parameter names say what the plugin needs (`config`, `knowledge`, `models`, `log`); the host gives exactly
    those. Keep the constructor light: heavy work belongs in `open`. Nothing of a request may live on `self`: requests
    run side by side.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    role: ClassVar[Role] = Role.CUSTOMER
    guessable: ClassVar[bool] = True
    max_concurrency: ClassVar[int] = 16
    config_type: ClassVar[type[Config]] = Config
    options_type: type[O] = Options  # type: ignore[assignment]  # the default of a type variable, Python 3.13

    def open(self) -> None:
        """Heavy work, once, before the first request; the host calls it under a lock per plugin."""

    @abstractmethod
    def handle(self, request: Request, options: O) -> Iterable[Event]:
        """Answer: yield events as you go, or return a list of them."""

    def act(self, action: Action, request: Request) -> Iterable[Event]:
        """Do what a person clicked in this plugin's answer; the same click twice is one call. Write it to offer `Actions`.

        The host has checked that the action was offered to this caller; whether it is still to be done is yours to check.
        """
        raise UserError(f"The plugin {self.name} has nothing to do for {action.label!r}.")

    def close(self) -> None:
        """Give back what `open` took; the host calls it once, after the last request."""


_NAME = re.compile(r"^[a-z][a-z_]{0,31}$")


def check(plugin: type[Plugin[Any]]) -> None:
    """Raise `PluginError` unless the class keeps the contract's form."""
    where = f"{plugin.__module__}.{plugin.__qualname__}"
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        raise PluginError(f"{where}: expected a method {missing}; write it")
    for attribute in ("name", "summary"):
        if not isinstance(getattr(plugin, attribute, None), str) or not getattr(plugin, attribute).strip():
            raise PluginError(f"{where}: expected a class attribute {attribute!r} with a text; add it")
    if not _NAME.match(plugin.name):
        raise PluginError(
            f"{where}: expected a name of a-z and _ (it is also the slash command), found {plugin.name!r}"
        )
    for attribute, kind in (("options_type", Options), ("config_type", Config)):
        found = getattr(plugin, attribute)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise PluginError(f"{where}: expected {attribute} to be a subclass of {kind.__name__}, found {found!r}")
    if isinstance(plugin.examples, str) or not all(isinstance(example, str) for example in plugin.examples):
        raise PluginError(f"{where}: expected examples to be a tuple of texts, found {plugin.examples!r}")
    if not isinstance(plugin.role, Role):
        raise PluginError(f"{where}: expected role to be a Role, found {plugin.role!r}")
    if not isinstance(plugin.max_concurrency, int) or plugin.max_concurrency < 1:
        raise PluginError(f"{where}: expected max_concurrency to be 1 or more, found {plugin.max_concurrency!r}")
    for field, info in plugin.options_type.model_fields.items():
        if not info.description:
            raise PluginError(f"{where}: expected a description on option {field!r}: Field(description=...)")
