"""What plugins may ask the host for: the Protocols behind constructor parameter names, and the values they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from assistant.messages import Message, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A chunk that may answer: an `entry` (question and answer, given as written) or a `passage` of a document.

    `score` is P(this passage answers), in [0, 1]; the raw numbers behind it are in `trace` only.
    """

    id: str
    document: str
    kind: Literal["entry", "passage"]
    title: str
    text: str
    score: float
    uri: str = ""
    language: str = "en"
    trace: Mapping[str, float] = field(default_factory=dict)

    def source(self) -> Source:
        """This hit as an answer cites it."""
        return Source(id=self.id, title=self.title, passage=self.text, score=self.score, uri=self.uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """What a search found, best first; a hit answers when its score reaches `threshold`.

    `sequence` is the knowledge base's change number that the search saw.
    """

    hits: tuple[Hit, ...]
    threshold: float
    sequence: int


@runtime_checkable
class KnowledgeBase(Protocol):
    """Asked for as `knowledge`."""

    def search(self, query: str, *, collection: str = "", limit: int = 5) -> Hits:
        """The chunks that may answer `query`, best first; "" searches the default collection."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors. `name` and `digest` identify it: vectors of two embedders never mix."""

    name: str
    digest: str
    dimension: int
    max_tokens: int

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (len(texts), dimension), each of length 1, for questions."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (len(texts), dimension), each of length 1, for passages."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, special ones included, before any cut."""
        ...


@runtime_checkable
class ModelStore(Protocol):
    """Asked for as `models`."""

    def use(self, name: str, kind: type[M]) -> AbstractContextManager[M]:
        """Borrow the model's current version for one request; never keep it.

        Raises `ModelMissing` where it is not in place.
        """
        ...


@runtime_checkable
class ChatLog(Protocol):
    """Asked for as `log`: reading only."""

    def history(self, conversation: str, *, limit: int = 50) -> tuple[Message, ...]:
        """The last `limit` messages of the conversation's current branch, oldest first."""
        ...


@runtime_checkable
class Jobs(Protocol):
    """Asked for as `jobs`: long work off the request thread."""

    def start(self, kind: str, payload: Mapping[str, str], *, owner: str) -> str:
        """Queue a job and return its id."""
        ...
