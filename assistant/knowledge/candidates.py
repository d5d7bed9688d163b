"""From two rankings to hits: fused, joined to the live rows of one snapshot, scored, spread over documents."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy import Connection, Row, select

from assistant.knowledge import scoring
from assistant.knowledge.scoring import Calibration, Candidate
from assistant.schema import chunks, documents
from assistant.services import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RANK_OFFSET = 60
_log = logging.getLogger(__name__)


def fused(*rankings: Sequence[int]) -> list[int]:
    """Rows of several rankings, best first, by reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (_RANK_OFFSET + rank)
    return sorted(scores, key=lambda row: (-scores[row], row))


def gathered(
    connection: Connection, collection: str, rows: Sequence[int], vector: NDArray[np.float32], text: Mapping[int, float]
) -> list[Candidate]:
    """The candidates of `rows` that are live in this snapshot, in that order.

    Their cosines come from the database's own vectors: an index gone stale can miss a chunk, never misjudge one.
    """
    statement = (
        select(
            chunks.c.row,
            chunks.c.key,
            chunks.c.document,
            chunks.c.kind,
            chunks.c.title,
            chunks.c.text,
            chunks.c.vector,
            documents.c.uri,
            documents.c.language,
        )
        .join(documents, documents.c.id == chunks.c.document)
        .where(chunks.c.row.in_(rows), chunks.c.collection == collection)
        .where(~chunks.c.deleted, chunks.c.enabled, ~documents.c.deleted)
    )
    found = {row.row: row for row in connection.execute(statement)}
    live = [found[row] for row in rows if row in found]
    if not live:
        return []
    vectors = np.frombuffer(b"".join(row.vector for row in live), dtype="<f4").reshape(len(live), -1)
    return [
        Candidate(
            row=row.row,
            key=row.key,
            document=row.document,
            uri=row.uri,
            kind=row.kind,
            title=row.title,
            text=row.text,
            language=row.language,
            cosine=float(cosine),
            bm25=text.get(row.row, 0.0),
        )
        for row, cosine in zip(live, vectors @ vector, strict=True)
    ]


def calibration_of(row: Row[*tuple[Any, ...]] | None, embedder: str) -> Calibration:
    """The calibration of a collection's row; the built-in one where it has none that fits its vectors and this code."""
    if row is None or row.calibration is None:
        return scoring.default(embedder)
    try:
        own = Calibration.model_validate(row.calibration)
    except ValidationError as error:
        _log.warning("collection %s: calibration passed over: %s", row.name, str(error).splitlines()[0])
        return scoring.default(embedder)
    fits = own.embedder_digest == row.embedder_digest and own.features == scoring.FEATURES
    return own if fits else scoring.default(embedder)


def hit(candidate: Candidate, score: float) -> Hit:
    """A candidate as a plugin sees it."""
    return Hit(
        id=candidate.key,
        document=candidate.document,
        kind=candidate.kind,
        title=candidate.title,
        text=candidate.text,
        score=score,
        uri=candidate.uri,
        language=candidate.language,
        trace={"cosine": candidate.cosine, "bm25": candidate.bm25},
    )


def spread(hits: Sequence[Hit], limit: int) -> list[Hit]:
    """The best `limit`, at most about half of them passages of one document as long as others are left.

    Entries are not held back: a table of questions is one document, but no row of it repeats another.
    """
    most = limit // 2 + 1
    count: Counter[str] = Counter()
    first: list[Hit] = []
    rest: list[Hit] = []
    for candidate in hits:
        count[candidate.document] += candidate.kind == "passage"
        over = candidate.kind == "passage" and count[candidate.document] > most
        (rest if over else first).append(candidate)
    chosen = (first + rest)[:limit]
    return sorted(chosen, key=lambda candidate: -candidate.score)
