"""The knowledge base with LangChain's faces: a retriever and a vector store over the same rows.

Imports langchain_core, which takes about a second: only bridges and plugins that use chains import this.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field

from assistant.errors import ModelMissing
from assistant.knowledge.library import Library
from assistant.knowledge.terms import terms
from assistant.services import Embedder, Hits
from assistant.settings import Knowledge
from assistant.storage import Database

if TYPE_CHECKING:
    from numpy.typing import NDArray

M = TypeVar("M")
OWNER = "langchain"
"""Who owns the documents that came in through the vector store, unless it was made for somebody."""


class KnowledgeRetriever(BaseRetriever):
    """Answers a chain's question with the library's best chunks, as documents with their scores.

    With `confident` only those that reach the collection's threshold: an empty list means "I do not know".
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Library = Field(repr=False)
    collection: str = ""
    k: int = Field(default=5, ge=1)
    confident: bool = False

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        hits = self.library.search(query, collection=self.collection, limit=int(kwargs.get("k", self.k)))
        least = hits.threshold if self.confident else 0.0
        found = [pair for pair in _documents(self.library, hits, self.collection) if pair[1] >= least]
        for document, score in found:
            document.metadata["score"] = score
        return [document for document, _ in found]


class KnowledgeVectorStore(VectorStore):
    """A collection as a vector store; scores are P(this text answers), in [0, 1], higher is better.

    The library's embedder makes the vectors, so that texts and files of a collection can be searched together.
    """

    def __init__(self, library: Library, *, collection: str = "", owner: str = OWNER) -> None:
        self.library = library
        self.collection = collection
        self.owner = owner
        self._own_database: Database | None = None

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> KnowledgeVectorStore:
        """A store of its own in the state folder `home=`, whose vectors `embedding` makes; close it after use."""
        home = Path(kwargs.pop("home"))
        home.mkdir(parents=True, exist_ok=True)
        database = Database.at(home)
        library = Library(home, database, _OneModel(GivenEmbedder(embedding)), Knowledge())
        store = cls(library, **kwargs)
        store._own_database = database
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def close(self) -> None:
        """Let go of the database where `from_texts` opened it; another's stays open."""
        if self._own_database is not None:
            self.library.close()
            self._own_database.close()

    @property
    def embeddings(self) -> Embeddings:
        """The library's embedder as LangChain knows embedders."""
        return LibraryEmbeddings(self.library)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add or replace texts; returns their ids, new ones where none are given."""
        new = list(texts)
        keys = [key or uuid.uuid4().hex for key in (ids if ids is not None else repeat("", len(new)))]
        self.library.add_texts(new, ids=keys, metadatas=metadatas, collection=self.collection, owner=self.owner)
        return keys

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add or replace documents under `ids=`, else under their own ids, else under new ones."""
        ids = kwargs.get("ids") or [document.id or "" for document in documents]
        texts = [document.page_content for document in documents]
        return self.add_texts(texts, [document.metadata for document in documents], ids=ids)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete these ids, or with None everything in the collection; absent ones are ignored."""
        name = self.collection or self.library.settings.collection
        wanted = ids if ids is not None else [document.id for document in self.library.documents(name)]
        self.library.discard(wanted, collection=self.collection)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids, absent ones left out."""
        found = self.library.get(ids, collection=self.collection)
        return [Document(id=chunk.key, page_content=chunk.text, metadata=dict(chunk.metadata)) for chunk in found]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` best documents, best first, however low they score."""
        return [document for document, _ in self.similarity_search_with_score(query, k)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the scores."""
        hits = self.library.search(query, collection=self.collection, limit=k)
        return list(_documents(self.library, hits, self.collection))

    def _select_relevance_score_fn(self) -> Any:
        return _as_it_is


class LibraryEmbeddings(Embeddings):
    """The embedder of a library as LangChain knows embedders."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors for passages."""
        with self._library.embedder() as embedder:
            return cast("list[list[float]]", embedder.embed_documents(texts).tolist())

    def embed_query(self, text: str) -> list[float]:
        """A unit vector for a question."""
        with self._library.embedder() as embedder:
            return cast("list[float]", embedder.embed_queries([text])[0].tolist())


class GivenEmbedder:
    """Any LangChain embedder as this program knows embedders: unit vectors, and a digest that tells it from others.

    The digest is that of its vector for one fixed text: there are no weights to see. Tokens are counted in words.
    """

    max_tokens = 512

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        self.name = type(embeddings).__name__.lower()[:64]
        probe = self.embed_queries(["The quick brown fox jumps over the lazy dog."])
        self.dimension = int(probe.shape[1])
        self.digest = hashlib.sha256(np.round(probe, 4).tobytes()).hexdigest()

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors for questions."""
        return _unit([self._embeddings.embed_query(text) for text in texts])

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors for passages."""
        return _unit(self._embeddings.embed_documents(list(texts)))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words and CJK pairs, and two that most tokenizers add."""
        return [len(terms(text)) + 2 for text in texts]


class _OneModel:
    """A model store that holds one embedder, whatever it is asked for by name."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @contextmanager
    def use(self, name: str, kind: type[M]) -> Iterator[M]:
        if not isinstance(self._embedder, kind):
            raise ModelMissing(f"Expected an embedder to be asked for, found {kind.__name__} {name}.")
        yield self._embedder


def _documents(library: Library, hits: Hits, collection: str) -> Iterator[tuple[Document, float]]:
    stored = {chunk.key: chunk for chunk in library.get([hit.id for hit in hits.hits], collection=collection)}
    for hit in hits.hits:
        source = stored.get(hit.id)
        if source is not None:  # else deleted since
            yield Document(id=hit.id, page_content=hit.text, metadata=dict(source.metadata)), hit.score


def _unit(vectors: list[list[float]]) -> NDArray[np.float32]:
    array = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return (array / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _as_it_is(score: float) -> float:
    """Scores are in [0, 1] and rising already; LangChain's own functions expect distances."""
    return score
