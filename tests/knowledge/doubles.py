"""A small deterministic embedder, a model store that holds it, and a program that adds files and can be killed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from assistant.knowledge.library import Library
from assistant.knowledge.terms import stem, terms
from assistant.settings import Knowledge
from assistant.storage import Database

if TYPE_CHECKING:
    from numpy.typing import NDArray

M = TypeVar("M")


class HashEmbedder:
    """A bag of stems hashed into 64 values: texts that share words are near, and nothing is learned."""

    max_tokens = 128
    dimension = 64

    def __init__(self, name: str = "hashed", seed: str = "") -> None:
        self.name = name
        self.digest = hashlib.sha256(f"{name}{seed}".encode()).hexdigest()
        self.seed = seed
        self.embedded: list[str] = []

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts])

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded.extend(texts)
        return np.stack([self._vector(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(terms(text)) + 2 for text in texts]

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.full(self.dimension, 1e-3, dtype=np.float32)
        for term in terms(text):
            digest = hashlib.blake2b((self.seed + stem(term)).encode(), digest_size=8).digest()
            vector[digest[0] % self.dimension] += 1.0 if digest[1] % 2 else -1.0
            vector[digest[2] % self.dimension] += 1.0 if digest[3] % 2 else -1.0
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class OneModel:
    """A model store with one embedder in place, which counts how often it is borrowed."""

    def __init__(self, embedder: HashEmbedder | None = None) -> None:
        self.embedder = embedder or HashEmbedder()
        self.borrowed = 0

    @contextmanager
    def use(self, name: str, kind: type[M]) -> Iterator[M]:
        self.borrowed += 1
        assert isinstance(self.embedder, kind)
        yield self.embedder


def open_library(home: Path, *, embedder: HashEmbedder | None = None) -> Library:
    """A library on the database of `home`, as a program of its own would open it."""
    home.mkdir(parents=True, exist_ok=True)
    return Library(home, Database.at(home), OneModel(embedder), Knowledge(collection="test", chunk_tokens=64))


def main(home: Path, paths: Sequence[Path]) -> None:
    """Add the paths and say so line by line: what was said is promised to be there."""
    library = open_library(home)
    print("ready", flush=True)
    library.add(paths, owner="test", report=lambda line: print(line, flush=True))
    library.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
