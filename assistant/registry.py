"""Finds and builds the plugins; what fails is kept with its reason, and the rest goes on."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from assistant.errors import PluginError
from assistant.plugin import Plugin, check
from assistant.settings import PluginsSection

GROUP = "assistant.plugins.v1"
log = logging.getLogger(__name__)

_added: set[str] = set()
"""Folders that settings put on the package's path: it is the process's, and another registry may not want them."""

AnyPlugin = Plugin[Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that is built, and where it came from."""

    plugin: AnyPlugin
    origin: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A plugin that is not there, where it was looked for, and why."""

    name: str
    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Registry:
    """The plugins of this process by name, in the order they were found."""

    loaded: Mapping[str, Loaded]
    rejected: tuple[Rejected, ...]

    @classmethod
    def load(
        cls, settings: PluginsSection, services: Mapping[str, Any], *, given: Sequence[type[AnyPlugin]] = ()
    ) -> Registry:
        """Check and build the `given` plugins and all that are discovered, but those that are disabled."""
        loaded: dict[str, Loaded] = {}
        rejected: list[Rejected] = []
        for found in chain(((kind, kind.__module__) for kind in given), _discover(settings.folders)):
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            kind, origin = found
            name = str(getattr(kind, "name", kind.__name__))
            if name in settings.disabled:
                rejected.append(Rejected(name, origin, "disabled in the settings"))
                continue
            if name in loaded:
                reason = f"a plugin of this name is loaded already, from {loaded[name].origin}; rename one of them"
                rejected.append(Rejected(name, origin, reason))
                continue
            plugin = _build(kind, settings, services)
            if isinstance(plugin, str):
                rejected.append(Rejected(name, origin, plugin))
            else:
                loaded[name] = Loaded(plugin, origin)
        for entry in rejected:
            if "disabled" not in entry.reason:
                log.warning("plugin %s (%s) is not loaded: %s", entry.name, entry.origin, entry.reason)
        return cls(loaded, tuple(rejected))


def _discover(folders: tuple[Path, ...]) -> Iterator[tuple[type[AnyPlugin], str] | Rejected]:
    package = importlib.import_module("plugins")
    for folder in folders:
        if not folder.is_dir():
            yield Rejected(folder.name, str(folder), "there is no such folder; mend [plugins] folders in the settings")
        elif str(folder) not in package.__path__:
            package.__path__.append(str(folder))
            _added.add(str(folder))
    own = [Path(place) for place in package.__path__ if place not in _added]
    for place in dict.fromkeys(str(path.resolve()) for path in [*own, *folders]):
        for info in sorted(pkgutil.iter_modules([place]), key=lambda module: module.name):
            yield from _from_module(info.name, place)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        kind = _guarded(point.load)
        if isinstance(kind, str):
            yield Rejected(point.name, origin, kind)
        elif not (isinstance(kind, type) and issubclass(kind, Plugin)):
            yield Rejected(point.name, origin, f"expected {point.value} to be a Plugin, found {kind!r}")
        else:
            yield kind, origin


def _from_module(name: str, folder: str) -> Iterator[tuple[type[AnyPlugin], str] | Rejected]:
    module = _guarded(lambda: importlib.import_module(f"plugins.{name}"))
    if isinstance(module, str):
        yield Rejected(name, str(Path(folder) / name), module)
        return
    origin = str(module.__file__)
    if not Path(origin).resolve().is_relative_to(folder):
        yield Rejected(name, str(Path(folder) / name), f"a module of this name is loaded already, from {origin}")
        return
    yield from ((kind, origin) for kind in _plugins_of(module))


def _plugins_of(module: ModuleType) -> list[type[AnyPlugin]]:
    """The plugin classes written in the module, or in a module below it: not those it imports, and each once."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
        and not value.__name__.startswith("_")
    ]
    return list(dict.fromkeys(found))


def _build(kind: type[AnyPlugin], settings: PluginsSection, services: Mapping[str, Any]) -> AnyPlugin | str:
    """The plugin with what its constructor names, or why it cannot be built."""

    def build() -> AnyPlugin:
        check(kind)
        given: dict[str, Any] = {}
        for parameter in inspect.signature(kind).parameters.values():
            if parameter.name == "config":
                given["config"] = _config(kind, settings)
            elif parameter.name in services:
                given[parameter.name] = services[parameter.name]
            else:
                known = ", ".join(["config", *sorted(services)])
                raise PluginError(
                    f"{kind.__module__}.{kind.__qualname__}: expected constructor arguments among {known}, "
                    f"found {parameter.name!r}; rename or drop it"
                )
        return kind(**given)

    built: AnyPlugin | str = _guarded(build)
    return built


def _config(kind: type[AnyPlugin], settings: PluginsSection) -> Any:
    try:
        return kind.config_type.model_validate(settings.of(kind.name))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise PluginError(f"[plugins.{kind.name}] {key}: {problem['msg']}; mend it in the settings") from None


def _guarded(load: Any) -> Any:
    """What `load` gives, or one sentence on why it could not: somebody else's code may raise anything at all."""
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except PluginError as error:
        return str(error)
    except BaseException as error:
        log.debug("a plugin failed to load", exc_info=True)
        return f"{traceback.format_exception_only(error)[-1].strip()}{_line_of(error)}"


def _line_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {Path(error.filename).name})"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})" if trace else ""
