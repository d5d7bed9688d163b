"""The nearest-neighbour index of one collection: FAISS, and nothing but FAISS.

Holds what the database holds at `sequence`, no truth of its own. Not safe for threads: its owner has the lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from assistant.errors import ArtifactRejected

# A foreign file may not make the parser loop or allocate without end; ours has no loops and no lattices.
_LOOPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Frozen:
    """The bytes of an index, and what a manifest says of them."""

    data: bytes
    sequence: int
    dimension: int
    count: int


class VectorIndex:
    """Exact inner-product search over unit vectors, by chunk row."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.sequence = 0
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._newest = -1  # a row above this cannot be in the index: rows are never reused

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def rows(self) -> NDArray[np.int64]:
        """The chunk rows it holds, in no particular order."""
        found: NDArray[np.int64] = faiss.vector_to_array(self._index.id_map)
        return found

    def put(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors (len(rows), dimension), each of length 1."""
        if vectors.shape != (len(rows), self.dimension):
            # FAISS would raise an assertion without a message.
            raise ValueError(f"expected vectors of shape {(len(rows), self.dimension)}, found {vectors.shape}")
        if not len(rows):
            return
        self.drop(rows[rows <= self._newest])
        self._index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), np.ascontiguousarray(rows))
        self._newest = max(self._newest, int(rows.max()))

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Take rows out; those that are not in it are ignored."""
        known = rows[rows <= self._newest]
        if len(known):
            self._index.remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(known, dtype=np.int64)))

    def search(self, vector: NDArray[np.float32], limit: int) -> list[tuple[int, float]]:
        """(row, cosine) of the `limit` nearest, best first; fewer where it holds fewer."""
        if not len(self):
            return []
        if vector.shape != (self.dimension,):
            raise ValueError(f"expected a vector of {self.dimension} values, found shape {vector.shape}")
        # One question has nothing to share out: waiting for a second thread on a busy machine took twenty times as long
        # as searching. The setting belongs to the calling thread, so it is made here.
        faiss.omp_set_num_threads(1)
        scores, rows = self._index.search(vector[None, :], min(limit, len(self)))
        return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0]

    def freeze(self) -> Frozen:
        """A copy in FAISS's own form, to be written while this one is searched and changed."""
        return Frozen(faiss.serialize_index(self._index).tobytes(), self.sequence, self.dimension, len(self))

    @classmethod
    def from_bytes(cls, data: bytes, dimension: int) -> VectorIndex:
        """The index in `data`, whose digest must have been checked before: the parser trusts what it reads.

        Raises `ArtifactRejected` where it is another kind of index than this program writes.
        """
        faiss.set_deserialization_loop_limit(_LOOPS)
        faiss.set_deserialization_vector_byte_limit(len(data))
        try:
            found = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise ArtifactRejected(f"expected a FAISS index, found {str(error)[:200]}. It will be rebuilt.") from None
        inner = faiss.downcast_index(found.index) if isinstance(found, faiss.IndexIDMap2) else found
        if not isinstance(inner, faiss.IndexFlatIP) or inner.d != dimension or found is inner:
            raise ArtifactRejected(
                f"expected IndexIDMap2(IndexFlatIP({dimension})), found {type(found).__name__}({type(inner).__name__}("
                f"{inner.d})). It will be rebuilt."
            )
        index = cls(dimension)
        index._index = found
        rows = index.rows()
        index._newest = int(rows.max()) if len(rows) else -1
        return index
