"""One collection's index in memory, kept level with the database by its change numbers."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection, Row, select

from assistant.knowledge.generations import Generations
from assistant.schema import chunks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from numpy.typing import NDArray

    from assistant.knowledge.index import VectorIndex

_BATCH = 4096
_WORTH_SAVING = 0.01  # of the index: reading fewer changes from the database costs less than writing all of it anew
_log = logging.getLogger(__name__)


class Mirror:
    """Take `lock` before the first read of a snapshot and keep it over `catch_up` and `nearest`.

    Then the index is never ahead of the snapshot: change numbers only rise.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.Lock()
        self._folder = folder
        self._digest = ""
        self._index: VectorIndex | None = None
        self._unsaved = 0

    def catch_up(self, connection: Connection, collection: str, *, sequence: int, digest: str, dimension: int) -> None:
        """Bring the index to the snapshot that `connection` sees, at `sequence`; loads or rebuilds it at first."""
        if self._index is None or self._digest != digest or self._index.sequence > sequence:
            self._load(connection, collection, sequence, digest, dimension)
        assert self._index is not None
        if self._index.sequence < sequence:
            self._unsaved += _apply(connection, collection, self._index)
            self._index.sequence = sequence

    def nearest(self, vector: NDArray[np.float32], limit: int) -> list[tuple[int, float]]:
        """(row, cosine) of the chunks nearest to a unit vector, best first."""
        return self._index.search(vector, limit) if self._index is not None else []

    def save(self) -> None:
        """Write the index where it has moved on; a disk that refuses is a warning, for nothing is lost."""
        with self.lock:
            if self._index is None or self._unsaved <= _WORTH_SAVING * len(self._index):
                return
            frozen, generations = self._index.freeze(), Generations(self._folder, self._digest)
            self._unsaved = 0
        try:
            generations.save(frozen)
        except OSError as error:
            _log.warning("the index in %s was not saved, the next start rebuilds it: %s", self._folder, error)

    def _load(self, connection: Connection, collection: str, sequence: int, digest: str, dimension: int) -> None:
        from assistant.knowledge.index import VectorIndex

        generations = Generations(self._folder, digest)
        index = generations.load(dimension, newest=sequence)
        self._unsaved = 0
        if index is not None:
            self._unsaved = _apply(connection, collection, index)
            index.sequence = sequence
            if not np.array_equal(np.sort(index.rows()), _live_rows(connection, collection)):
                _log.warning("the index in %s is another database's: rebuilt", self._folder)
                generations.discard()
                index = None
        if index is None:
            index = VectorIndex(dimension)
            self._unsaved = _apply(connection, collection, index)
            index.sequence = sequence
        self._index, self._digest = index, digest


def _live_rows(connection: Connection, collection: str) -> NDArray[np.int64]:
    statement = select(chunks.c.row).where(chunks.c.collection == collection, ~chunks.c.deleted, chunks.c.enabled)
    return np.sort(np.fromiter(connection.scalars(statement), dtype=np.int64))


def _apply(connection: Connection, collection: str, index: VectorIndex) -> int:
    """Put what changed after the index's sequence into it; the number of changes."""
    statement = select(chunks.c.row, chunks.c.vector, chunks.c.deleted, chunks.c.enabled).where(
        chunks.c.collection == collection, chunks.c.sequence > index.sequence
    )
    if not len(index):
        statement = statement.where(~chunks.c.deleted, chunks.c.enabled)
    changed = 0
    for batch in connection.execute(statement, execution_options={"yield_per": _BATCH}).partitions(_BATCH):
        gone = np.array([row.row for row in batch if row.deleted or not row.enabled], dtype=np.int64)
        here = [row for row in batch if row.enabled and not row.deleted]
        index.drop(gone)
        if here:
            index.put(np.array([row.row for row in here], dtype=np.int64), _vectors(here, index.dimension))
        changed += len(batch)
    return changed


def _vectors(rows: Iterable[Row[*tuple[Any, ...]]], dimension: int) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4").reshape(-1, dimension)
