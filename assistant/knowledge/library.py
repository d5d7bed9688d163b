"""The knowledge base: documents in, hits out. What plugins ask for as `knowledge`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Row, func, null, select, update

from assistant.errors import UserError
from assistant.knowledge import ingest, scoring
from assistant.knowledge.candidates import calibration_of, fused, gathered, hit, spread
from assistant.knowledge.documents import from_text
from assistant.knowledge.ingest import Added, Ingest
from assistant.knowledge.mirror import Mirror
from assistant.knowledge.scoring import Calibration, Candidate
from assistant.knowledge.terms import query_terms
from assistant.schema import chunks, collections, documents
from assistant.services import Embedder, Hits, ModelStore
from assistant.storage import current_sequence, search_text

if TYPE_CHECKING:
    from assistant.knowledge.retriever import KnowledgeRetriever
    from assistant.settings import Knowledge
    from assistant.storage import Database

_POOL = 50
"""Candidates that each of the two rankings brings."""
_SCORED = 24
"""Candidates whose features are computed, best ranks first; the same in calibration, or the features would differ."""
_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A live document as lists show it; `created` is in seconds since 1970."""

    id: str
    collection: str
    uri: str
    title: str
    kind: Literal["entries", "passages"]
    language: str
    owner: str
    chunks: int
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCollection:
    """A collection as lists show it; `calibrated` where its scores rest on questions about itself."""

    name: str
    embedder: str
    language: str
    documents: int
    chunks: int
    calibrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """A live chunk; `metadata` is what was given with the text, or where the chunk comes from."""

    key: str
    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The scored candidates of one snapshot, best first."""

    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]
    threshold: float
    sequence: int


class Library:
    """Safe for threads and beside other processes: what a query sees is one snapshot of the database."""

    def __init__(self, home: Path, database: Database, models: ModelStore, settings: Knowledge) -> None:
        self.settings = settings
        self._home = home
        self._database = database
        self._models = models
        self._mirrors: dict[str, Mirror] = {}
        self._mirrors_lock = threading.Lock()

    def add(
        self,
        paths: Sequence[Path],
        *,
        collection: str = "",
        owner: str,
        report: Callable[[str], None] | None = None,
    ) -> tuple[Added, ...]:
        """Files and folders into a collection, one transaction each; what fails is in its result, the rest goes in.

        `report` is called with one line for each file, when it is safely in the database.
        """
        collection = self._named(collection)
        results: list[Added] = []
        taken: dict[str, Path] = {}
        with self.embedder() as embedder:
            work = Ingest(self._database, embedder, collection, owner)
            renewed = work.align()
            if renewed and report is not None:
                report(f"embedded {renewed} chunks of {collection} anew with {embedder.name}")
            for path, uri in ingest.files(paths):
                if uri in taken:
                    problem = f"{path}: expected names that differ, found {uri} twice. Give the folder above both."
                    result = Added(path=str(path), uri=uri, status="failed", problem=problem)
                else:
                    result = work.add(path, uri, chunk_tokens=self.settings.chunk_tokens)
                taken[uri] = path
                results.append(result)
                if report is not None:
                    report(str(result))
        if renewed or any(result.status in ("added", "changed") for result in results):
            self.save_index(collection)
        return tuple(results)

    def add_texts(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        collection: str = "",
        owner: str,
    ) -> None:
        """Texts as documents of one chunk, whose key and uri are the id; one that is there already is replaced.

        All of them in one transaction. `metadatas` are JSON objects, given back as they are.
        """
        given = metadatas if metadatas is not None else [{}] * len(texts)
        if not len(texts) == len(ids) == len(given):
            raise UserError(
                f"Expected as many ids and metadata as texts, found {len(texts)}, {len(ids)}, {len(given)}."
            )
        new = {key: from_text(key, text, data) for key, text, data in zip(ids, texts, given, strict=True)}
        if not new:
            return
        with self.embedder() as embedder:
            work = Ingest(self._database, embedder, self._named(collection), owner)
            work.align()
            work.store(list(new.values()))

    def get(self, keys: Sequence[str], *, collection: str = "") -> tuple[StoredChunk, ...]:
        """The live chunks of these keys in the order asked for; absent ones are left out."""
        statement = (
            select(chunks.c.key, chunks.c.kind, chunks.c.title, chunks.c.text, documents.c.uri, documents.c.tags)
            .join(documents, documents.c.id == chunks.c.document)
            .where(chunks.c.collection == (collection or self.settings.collection), ~chunks.c.deleted)
        )
        found: dict[str, StoredChunk] = {}
        with self._database.read() as connection:
            for start in range(0, len(keys), 500):
                for row in connection.execute(statement.where(chunks.c.key.in_(list(keys[start : start + 500])))):
                    source = {"uri": row.uri, "title": row.title, "kind": row.kind}
                    metadata = (row.tags or {}).get("metadata", source)
                    found[row.key] = StoredChunk(key=row.key, text=row.text, metadata=metadata)
        return tuple(found[key] for key in keys if key in found)

    def documents(self, collection: str = "") -> list[StoredDocument]:
        """The live documents of a collection, by uri; of all collections with ""."""
        count = func.count(chunks.c.row).label("chunks")
        names = [column for column in documents.c if column.name in StoredDocument.__annotations__]
        statement = (
            select(*names, count)
            .join(chunks, (chunks.c.document == documents.c.id) & ~chunks.c.deleted, isouter=True)
            .where(~documents.c.deleted)
            .group_by(documents.c.id)
            .order_by(documents.c.collection, documents.c.uri)
        )
        if collection:
            statement = statement.where(documents.c.collection == collection)
        with self._database.read() as connection:
            return [StoredDocument(**row._mapping) for row in connection.execute(statement)]

    def collections(self) -> list[StoredCollection]:
        """Every collection, by name."""
        live = (chunks.c.collection == collections.c.name) & ~chunks.c.deleted
        pages = (documents.c.collection == collections.c.name) & ~documents.c.deleted
        statement = select(
            collections.c.name,
            collections.c.embedder,
            collections.c.language,
            select(func.count()).select_from(documents).where(pages).scalar_subquery().label("documents"),
            select(func.count()).select_from(chunks).where(live).scalar_subquery().label("chunks"),
            collections.c.calibration.is_not(null()).label("calibrated"),
        ).order_by(collections.c.name)
        with self._database.read() as connection:
            return [StoredCollection(**row._mapping) for row in connection.execute(statement)]

    def remove(self, id: str, *, collection: str = "") -> int:  # noqa: A002 - the word of the interface
        """Delete a document by its id or uri, or one chunk by its key; the number of chunks that went.

        It stops answering with the commit, in every process.
        """
        name = collection or self.settings.collection
        count = self._database.write(lambda connection: ingest.remove(connection, [id], name))
        if not count:
            raise UserError(
                f"Expected the id or path of a document, or the id of an entry or passage, of the collection {name}, "
                f"found none called {id!r}. `assistant knowledge list` shows them."
            )
        return count

    def discard(self, ids: Sequence[str], *, collection: str = "") -> int:
        """As `remove` for each of them, in one transaction; absent ones are ignored."""
        name = collection or self.settings.collection
        return self._database.write(lambda connection: ingest.remove(connection, ids, name))

    def search(self, query: str, *, collection: str = "", limit: int = 5) -> Hits:
        """The chunks that may answer `query`, best first; "" searches the default collection."""
        found = self.candidates(query, collection=collection, limit=limit)
        hits = list(map(hit, found.candidates, found.scores))
        return Hits(hits=tuple(spread(hits, limit)), threshold=found.threshold, sequence=found.sequence)

    def candidates(self, query: str, *, collection: str = "", limit: int = 5) -> Found:
        """Every chunk that was considered, with its raw numbers; what `search` shows the best of.

        Raises `UserError` where the collection's vectors are of another embedder than the settings name.
        """
        name = collection or self.settings.collection
        wanted = query_terms(query)
        with self._database.read() as connection:
            sequence, row = current_sequence(connection), _collection(connection, name)
            empty = row is None or _is_empty(connection, name)
        if row is None or empty or not wanted or limit < 1:
            threshold = calibration_of(row, self.settings.embedder).threshold
            return Found(candidates=(), scores=(), threshold=threshold, sequence=sequence)
        with self.embedder() as embedder:
            vector, digest, dimension = embedder.embed_queries([query])[0], embedder.digest, embedder.dimension
        mirror = self._mirror(name)
        pool = max(_POOL, 2 * limit)
        with self._database.read() as connection:
            with mirror.lock:
                sequence, row = current_sequence(connection), _collection(connection, name)
                assert row is not None  # collections are never deleted
                if row.embedder_digest != digest:
                    raise UserError(
                        f"The collection {name} was embedded with {row.embedder} ({row.embedder_digest[:12]}), the "
                        f"settings name {self.settings.embedder} ({digest[:12]}). Add its documents again to embed "
                        f"it anew (assistant knowledge add PATH --collection {name}), or set that embedder back."
                    )
                mirror.catch_up(connection, name, sequence=sequence, digest=digest, dimension=dimension)
                dense = mirror.nearest(vector, pool)
            text = dict(search_text(connection, wanted, name, pool))
            best = fused([row for row, _ in dense], list(text))[: max(_SCORED, limit)]
            found = gathered(connection, name, best, vector, text)
        calibration = calibration_of(row, row.embedder)
        scores = calibration.scores(scoring.features(query, found))
        order = sorted(range(len(found)), key=lambda i: (-scores[i], found[i].row))
        return Found(
            candidates=tuple(found[i] for i in order),
            scores=tuple(float(scores[i]) for i in order),
            threshold=calibration.threshold,
            sequence=sequence,
        )

    def calibrate(self, path: Path, *, collection: str = "") -> Calibration:
        """Fit scores and threshold of a collection on questions with known answers (a JSONL file), and store them."""
        from assistant.knowledge import calibration

        name = collection or self.settings.collection
        fitted = calibration.calibrate(self, path, collection=name)
        value = {"calibration": fitted.model_dump(mode="json")}
        statement = update(collections).where(collections.c.name == name).values(value)
        self._database.write(lambda connection: connection.execute(statement) and None)
        return fitted

    def embedder_of(self, collection: str = "") -> tuple[str, str]:
        """(name, digest) of the embedder that made the collection's vectors; `UserError` without the collection."""
        name = collection or self.settings.collection
        with self._database.read() as connection:
            row = _collection(connection, name)
        if row is None:
            raise UserError(f"There is no collection {name}. Add documents to it first.")
        return row.embedder, row.embedder_digest

    def save_index(self, collection: str = "") -> None:
        """Bring the index file of a collection up to the database; cheap when little changed."""
        name = collection or self.settings.collection
        mirror = self._mirror(name)
        with self._database.read() as connection, mirror.lock:
            sequence, row = current_sequence(connection), _collection(connection, name)
            if row is None:
                return
            first = select(func.length(chunks.c.vector)).where(chunks.c.collection == name, ~chunks.c.deleted)
            size = connection.scalar(first.limit(1))
            if not size:
                return
            mirror.catch_up(connection, name, sequence=sequence, digest=row.embedder_digest, dimension=size // 4)
        mirror.save()

    def as_retriever(self, **kwargs: Any) -> KnowledgeRetriever:
        """This knowledge base as LangChain knows retrievers; importing it takes about a second."""
        from assistant.knowledge.retriever import KnowledgeRetriever

        return KnowledgeRetriever(library=self, **kwargs)

    def close(self) -> None:
        """Write the indexes that moved on."""
        for mirror in list(self._mirrors.values()):
            mirror.save()

    def _mirror(self, collection: str) -> Mirror:
        with self._mirrors_lock:
            if collection not in self._mirrors:
                self._mirrors[collection] = Mirror(self._home / "index" / collection)
            return self._mirrors[collection]

    def embedder(self) -> AbstractContextManager[Embedder]:
        """Borrow the embedder that the settings name."""
        return self._models.use(self.settings.embedder, Embedder)  # type: ignore[type-abstract]  # a Protocol is meant

    def _named(self, collection: str) -> str:
        """A name that can become a folder's; the default one for ""."""
        name = collection or self.settings.collection
        if not _NAME.match(name):
            raise UserError(f"Expected a collection named with a-z, 0-9, - and _ (64 at most), found {name!r}.")
        return name


def _collection(connection: Connection, name: str) -> Row[*tuple[Any, ...]] | None:
    return connection.execute(select(collections).where(collections.c.name == name)).first()


def _is_empty(connection: Connection, name: str) -> bool:
    statement = select(chunks.c.row).where(chunks.c.collection == name, ~chunks.c.deleted, chunks.c.enabled)
    return connection.execute(statement.limit(1)).first() is None
