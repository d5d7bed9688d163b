"""Documents into the database: what changed is embedded outside the transaction, then replaced in one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from sqlalchemy import Connection, Row, bindparam, insert, null, select, update

from assistant.errors import UserError
from assistant.failpoints import failpoint
from assistant.knowledge import documents as loaders
from assistant.knowledge.documents import Chunk, Document, Unreadable
from assistant.knowledge.terms import terms
from assistant.schema import chunks, collections, documents
from assistant.storage import index_texts, next_sequence, now, remove_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from assistant.services import Embedder
    from assistant.storage import Database

T = TypeVar("T")
_EMBED_BATCH = 64
_BIND_BATCH = 500
"""Values in one IN (...): databases limit them."""

_INSERT = insert(chunks).returning(chunks.c.row, sort_by_parameter_order=True)
_MOVE = (
    update(chunks)
    .where(chunks.c.row == bindparam("its"))
    .values({name: bindparam(f"new_{name}") for name in ("ordinal", "start", "end")})
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of one file: its document's id and its chunks, or in one sentence what is wrong with it."""

    path: str
    uri: str
    status: Literal["added", "changed", "unchanged", "failed"]
    document: str = ""
    chunks: int = 0
    problem: str = ""

    def __str__(self) -> str:
        if self.status == "failed":
            return f"failed {self.uri}: {self.problem}"
        return f"{self.status} {self.uri} ({self.chunks} chunks)"


class _Moved(Exception):
    """The database changed between embedding and writing: what is missing must be embedded first."""


def files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(file, uri) of each file, and of each file in a folder, sorted; the uri is its path below that folder.

    Hidden files of a folder are left out.
    """
    for path in paths:
        if not path.is_dir():
            yield path, path.name
            continue
        for found in sorted(path.rglob("*")):
            below = found.relative_to(path)
            if found.is_file() and not any(part.startswith(".") for part in below.parts):
                yield found, below.as_posix()


class Ingest:
    """Writes documents of one owner into one collection; borrows the embedder for as long as it lives."""

    def __init__(self, database: Database, embedder: Embedder, collection: str, owner: str) -> None:
        self._database = database
        self._embedder = embedder
        self._collection = collection
        self._owner = owner

    def add(self, path: Path, uri: str, *, chunk_tokens: int) -> Added:
        """One file, in one transaction."""
        try:
            data = loaders.read(path)
            found = self._unchanged(uri, loaders.digest_of(data))
            if found is not None:
                return Added(path=str(path), uri=uri, status="unchanged", document=found[0], chunks=found[1])
            document = loaders.parse(data, uri, self._embedder, chunk_tokens=chunk_tokens)
            failpoint("knowledge.split")
            status, identity = self.store([document])[0]
        except Unreadable as error:
            return Added(path=str(path), uri=uri, status="failed", problem=f"{path}: {error}.")
        return Added(path=str(path), uri=uri, status=status, document=identity, chunks=len(document.chunks))

    def store(self, new: Sequence[Document]) -> list[tuple[Literal["added", "changed", "unchanged"], str]]:
        """(status, id) of each document, all of them in one transaction or none.

        Raises `Unreadable` where a chunk's key is another live document's.
        """
        vectors: dict[str, bytes] = {}
        while True:
            self._embed([content for content in self._lacking(new) if content not in vectors], vectors)
            failpoint("knowledge.embedded")
            try:
                return self._database.write(lambda connection: self._replace(connection, new, vectors))
            except _Moved:
                continue

    def align(self) -> int:
        """Embed the whole collection anew where another embedder made its vectors; how many chunks that were."""
        vectors: dict[str, bytes] = {}
        while True:
            with self._database.read() as connection:
                row = connection.execute(select(collections).where(collections.c.name == self._collection)).first()
                if row is None or row.embedder_digest == self._embedder.digest:
                    return 0
                contents = [_content(chunk) for chunk in _live(connection, self._collection)]
            self._embed([content for content in dict.fromkeys(contents) if content not in vectors], vectors)
            try:
                return self._database.write(lambda connection: self._exchange(connection, vectors))
            except _Moved:
                continue

    def _unchanged(self, uri: str, digest: str) -> tuple[str, int] | None:
        with self._database.read() as connection:
            found = self._document(connection, uri)
            if found is None or found.digest != digest:
                return None
            return found.id, len(list(_live(connection, self._collection, found.id)))

    def _document(self, connection: Connection, uri: str) -> Row[*tuple[Any, ...]] | None:
        statement = select(documents.c.id, documents.c.digest).where(
            documents.c.collection == self._collection, documents.c.uri == uri, ~documents.c.deleted
        )
        return connection.execute(statement).first()

    def _lacking(self, new: Sequence[Document]) -> list[str]:
        """The contents that have no vector in the database yet."""
        wanted: dict[str, None] = {}
        with self._database.read() as connection:
            for document in new:
                found = self._document(connection, document.uri)
                live = _by_key(connection, self._collection, found.id) if found is not None else {}
                for chunk in document.chunks:
                    if not _same(live.get(chunk.key), chunk):
                        wanted[chunk.content] = None
        return list(wanted)

    def _embed(self, contents: Sequence[str], vectors: dict[str, bytes]) -> None:
        for batch in _batches(contents, _EMBED_BATCH):
            found = self._embedder.embed_documents(batch)
            self._check(found, len(batch))
            vectors.update(zip(batch, (row.astype("<f4").tobytes() for row in found), strict=True))

    def _check(self, found: NDArray[np.float32], count: int) -> None:
        expected = (count, self._embedder.dimension)
        if found.shape != expected or not np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-3):
            raise UserError(
                f"Expected {expected[0]} vectors of {expected[1]} values and length 1 from the embedder "
                f"{self._embedder.name}, found others (shape {found.shape}). Nothing was added: pull the model again."
            )

    def _replace(
        self, connection: Connection, new: Sequence[Document], vectors: dict[str, bytes]
    ) -> list[tuple[Literal["added", "changed", "unchanged"], str]]:
        self._ensure_collection(connection, new[0].language)
        sequence = 0
        results: list[tuple[Literal["added", "changed", "unchanged"], str]] = []
        for document in new:
            found = self._document(connection, document.uri)
            if found is not None and found.digest == document.digest:
                results.append(("unchanged", found.id))
                continue
            sequence = sequence or next_sequence(connection)
            identity = self._put_document(connection, document, found, sequence)
            self._put_chunks(connection, document, identity, sequence, vectors)
            results.append(("changed" if found is not None else "added", identity))
        return results

    def _ensure_collection(self, connection: Connection, language: str) -> None:
        found = connection.execute(select(collections).where(collections.c.name == self._collection)).first()
        if found is not None:
            if found.embedder_digest != self._embedder.digest:
                raise UserError(
                    f"The collection {self._collection} moved to the embedder {found.embedder} meanwhile: "
                    "nothing was added. Run this again."
                )
            return
        values = {
            "name": self._collection,
            "owner": self._owner,
            "embedder": self._embedder.name,
            "embedder_digest": self._embedder.digest,
            "language": language,
            "created": now(),
        }
        connection.execute(insert(collections).values(values))

    def _put_document(
        self, connection: Connection, new: Document, found: Row[*tuple[Any, ...]] | None, sequence: int
    ) -> str:
        values: dict[str, Any] = {
            "title": new.title,
            "kind": new.kind,
            "language": new.language,
            "digest": new.digest,
            "tags": dict(new.tags) or null(),
            "sequence": sequence,
        }
        if found is not None:
            connection.execute(update(documents).where(documents.c.id == found.id).values(values))
            return str(found.id)
        identity = uuid.uuid4().hex
        values |= {"id": identity, "collection": self._collection, "uri": new.uri}
        values |= {"owner": self._owner, "created": now()}
        connection.execute(insert(documents).values(values))
        return identity

    def _put_chunks(
        self, connection: Connection, new: Document, identity: str, sequence: int, vectors: dict[str, bytes]
    ) -> None:
        live = _by_key(connection, self._collection, identity)
        kept = {chunk.key for chunk in new.chunks if _same(live.get(chunk.key), chunk)}
        bury(connection, [row.row for key, row in live.items() if key not in kept], sequence)
        self._refuse_foreign_keys(connection, [chunk.key for chunk in new.chunks if chunk.key not in kept])
        moved: list[dict[str, Any]] = []
        fresh: list[dict[str, Any]] = []
        for ordinal, chunk in enumerate(new.chunks):
            place = {"ordinal": ordinal, "start": chunk.start, "end": chunk.end}
            if chunk.key in kept:
                moved.append({f"new_{name}": value for name, value in place.items()} | {"its": live[chunk.key].row})
                continue
            vector = vectors.get(chunk.content)
            if vector is None:
                raise _Moved
            own = {"key": chunk.key, "kind": chunk.kind, "title": chunk.title, "text": chunk.text, "vector": vector}
            shared = {"document": identity, "collection": self._collection, "sequence": sequence}
            fresh.append(own | shared | place)
        if moved:
            connection.execute(_MOVE, moved)
        for batch in _batches(fresh, _BIND_BATCH):
            rows = connection.scalars(_INSERT, batch).all()
            failpoint("knowledge.insert")
            texts = zip(rows, batch, strict=True)
            index_texts(connection, [(row, _terms(one["title"]), _terms(one["text"])) for row, one in texts])

    def _refuse_foreign_keys(self, connection: Connection, keys: Sequence[str]) -> None:
        for batch in _batches(keys, _BIND_BATCH):
            statement = (
                select(chunks.c.key, documents.c.uri)
                .join(documents, documents.c.id == chunks.c.document)
                .where(chunks.c.collection == self._collection, chunks.c.key.in_(batch), ~chunks.c.deleted)
            )
            taken = connection.execute(statement).first()
            if taken is not None:
                raise Unreadable(
                    f"expected ids of its own, found {taken.key!r}, which is in {taken.uri} already. "
                    "Change the id, or remove the other one"
                )

    def _exchange(self, connection: Connection, vectors: dict[str, bytes]) -> int:
        sequence = next_sequence(connection)
        count = 0
        for chunk in list(_live(connection, self._collection)):
            if _content(chunk) not in vectors:
                raise _Moved
            values = {"vector": vectors[_content(chunk)], "sequence": sequence}
            connection.execute(update(chunks).where(chunks.c.row == chunk.row).values(values))
            count += 1
        # The old weights were fitted on the old embedder's cosines.
        moved = {"embedder": self._embedder.name, "embedder_digest": self._embedder.digest, "calibration": null()}
        connection.execute(update(collections).where(collections.c.name == self._collection).values(moved))
        return count


def bury(connection: Connection, rows: Sequence[int], sequence: int) -> None:
    """Turn chunks into tombstones: out of the full text, and without their text and vector."""
    for batch in _batches(rows, _BIND_BATCH):
        blank = {"deleted": True, "sequence": sequence, "title": "", "text": "", "vector": b""}
        connection.execute(update(chunks).where(chunks.c.row.in_(batch)).values(blank))
        for row in batch:
            remove_text(connection, row)


def remove(connection: Connection, ids: Sequence[str], collection: str) -> int:
    """Bury the documents of these ids or uris, or the chunks of these keys; the number of chunks that went."""
    sequence = 0
    count = 0
    for wanted in ids:
        document, rows = _meant(connection, wanted, collection)
        if not rows:
            continue
        sequence = sequence or next_sequence(connection)
        bury(connection, rows, sequence)
        count += len(rows)
        if next(_live(connection, collection, document), None) is None:
            blank: dict[str, Any] = {"deleted": True, "sequence": sequence, "title": "", "tags": null()}
        else:
            # It is no longer what the file says: adding the file again brings the chunk back.
            blank = {"digest": "", "sequence": sequence}
        connection.execute(update(documents).where(documents.c.id == document).values(blank))
    return count


def _meant(connection: Connection, wanted: str, collection: str) -> tuple[str, list[int]]:
    """The document that an id, a uri or a chunk's key names, and which of its chunks; none where it names nothing."""
    statement = select(documents.c.id).where(documents.c.collection == collection, ~documents.c.deleted)
    for column in (documents.c.id, documents.c.uri):
        identity = connection.scalar(statement.where(column == wanted))
        if identity is not None:
            return str(identity), [row.row for row in _live(connection, collection, identity)]
    key = select(chunks.c.row, chunks.c.document).where(
        chunks.c.collection == collection, chunks.c.key == wanted, ~chunks.c.deleted
    )
    found = connection.execute(key).first()
    return (found.document, [found.row]) if found is not None else ("", [])


def _live(connection: Connection, collection: str, document: str = "") -> Iterator[Row[*tuple[Any, ...]]]:
    statement = select(chunks.c.row, chunks.c.key, chunks.c.title, chunks.c.text).where(
        chunks.c.collection == collection, ~chunks.c.deleted
    )
    if document:
        statement = statement.where(chunks.c.document == document)
    yield from connection.execute(statement)


def _by_key(connection: Connection, collection: str, document: str) -> dict[str, Row[*tuple[Any, ...]]]:
    return {row.key: row for row in _live(connection, collection, document)}


def _same(row: Row[*tuple[Any, ...]] | None, chunk: Chunk) -> bool:
    return row is not None and row.title == chunk.title and row.text == chunk.text


def _content(row: Row[*tuple[Any, ...]]) -> str:
    return Chunk(row.key, "passage", row.title, row.text).content


def _terms(content: str) -> str:
    return " ".join(terms(content))


def _batches(values: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
