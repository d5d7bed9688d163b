"""Fits what a collection's scores mean on questions with known answers, and chooses the score from which it answers.

The weights that ship are made by the same code: `write_built_in` on a library that holds the demo shop.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.errors import UserError
from assistant.knowledge import scoring
from assistant.knowledge.documents import Unreadable, read
from assistant.knowledge.scoring import FEATURES, Calibration, FittedOn

if TYPE_CHECKING:
    from assistant.knowledge.library import Library

PRECISION = 0.95
"""Of the questions that are answered, the share whose first hit is right, that the threshold is chosen for."""

LEAST_COVERAGE = 0.25
"""Of the questions with an answer, the share to be answered where `PRECISION` is out of reach."""

_FEWEST = 20  # questions with an answer: fewer say nothing about 95 %
_FOLDS = 5
_ROUNDS = 4
_log = logging.getLogger(__name__)


class GoldenQuestion(BaseModel):
    """A question as users type it, and the keys of the chunks that answer it; none where nothing does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    question: str = Field(min_length=1)
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    features: NDArray[np.float64]
    right: NDArray[np.bool_]
    answerable: bool


def golden(path: Path) -> list[GoldenQuestion]:
    """The questions of a JSONL file; `UserError` names the line that is none."""
    questions: list[GoldenQuestion] = []
    try:
        lines = read(path).decode("utf-8").splitlines()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(GoldenQuestion.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise UserError(
                f"{path}, line {number}: expected id, question and answers, found: {where} {problem['msg']}. Mend it."
            ) from None
    return questions


def calibrate(library: Library, path: Path, *, collection: str = "") -> Calibration:
    """Weights and threshold for a collection from the golden questions in `path`; nothing is stored.

    A candidate is right when it is in `answers`, or another piece of a section that is. Precision and coverage are
    measured on questions that the weights were not fitted on.
    """
    questions = golden(path)
    asked = [_ask(library, question, collection) for question in _known(library, questions, collection, path)]
    embedder, digest = library.embedder_of(collection)
    scores = _out_of_fold(asked)
    threshold, precision, coverage = choose_threshold(scores, sum(one.answerable for one in asked))
    if precision < PRECISION:
        _log.warning(
            "%s: no score answers at %.0f %% precision, this one does at %.0f %%",
            path,
            100 * PRECISION,
            100 * precision,
        )
    mean, scale, weights, bias = scoring.fit(*_stacked(asked))
    return Calibration(
        embedder=embedder,
        embedder_digest=digest,
        features=FEATURES,
        mean=_numbers(mean),
        scale=_numbers(scale),
        weights=_numbers(weights),
        bias=round(bias, 6),
        threshold=round(threshold, 6),
        fitted_on=FittedOn(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            questions=len(asked),
            answerable=sum(one.answerable for one in asked),
            precision=round(precision, 4),
            coverage=round(coverage, 4),
        ),
    )


def choose_threshold(firsts: Sequence[tuple[float, bool]], answerable: int) -> tuple[float, float, float]:
    """(threshold, precision, coverage): the lowest score from which first hits are right at `PRECISION`.

    `firsts` holds for each question its best score and whether that hit was right. Precision is smoothed by half a right
    and half a wrong answer, so that three of three is not taken for certain; coverage is the share of the `answerable`
    questions that are answered rightly. Where no score is that good, the most precise one that still covers
    `LEAST_COVERAGE`: an assistant that never answers is of no use to anybody, and the numbers say what it is worth.
    """
    ranked = sorted(firsts, reverse=True)
    right = 0
    chosen: tuple[float, float, float] | None = None
    every: list[tuple[float, float, float]] = []
    for count, (score, is_right) in enumerate(ranked, 1):
        right += is_right
        if count < len(ranked) and ranked[count][0] == score:
            continue  # a threshold cannot part equal scores
        precision = (right + 0.5) / (count + 1)
        found = (score, precision, right / max(answerable, 1))
        if precision >= PRECISION:
            chosen = found
        every.append(found)
    useful = [found for found in every if found[2] >= LEAST_COVERAGE] or every
    return chosen or max(useful, key=lambda found: found[1], default=(1.0, 0.0, 0.0))


def write_built_in(library: Library, path: Path, *, collection: str = "", out: Path = scoring.BUILT_IN) -> Calibration:
    """Fit on the demo shop's calibration questions and write the calibration that ships for this embedder.

    To be run when the features, the demo shop or the embedder change; a test compares the file with a fresh fit.
    """
    fitted = calibrate(library, path, collection=collection)
    shipped = json.loads(out.read_text("utf-8")) if out.exists() else {}
    shipped[fitted.embedder] = fitted.model_dump(mode="json")
    out.write_text(json.dumps(shipped, indent=1) + "\n", encoding="utf-8")
    scoring.built_in.cache_clear()
    return fitted


def _known(library: Library, questions: list[GoldenQuestion], collection: str, path: Path) -> list[GoldenQuestion]:
    answerable = sum(bool(question.answers) for question in questions)
    if answerable < _FEWEST:
        raise UserError(f"{path}: expected at least {_FEWEST} questions with an answer, found {answerable}. Add some.")
    keys = sorted({key for question in questions for key in question.answers})
    absent = sorted(set(keys) - {chunk.key for chunk in library.get(keys, collection=collection)})
    if absent:
        raise UserError(
            f"{path}: expected answers that are in the collection, found {len(absent)} that are not, the first "
            f"{absent[0]!r}. Add their documents, or mend the ids."
        )
    return questions


def _ask(library: Library, question: GoldenQuestion, collection: str) -> _Asked:
    found = library.candidates(question.question, collection=collection).candidates
    answers = library.get(question.answers, collection=collection)
    sections = {(chunk.metadata["uri"], chunk.metadata["title"]) for chunk in answers if "title" in chunk.metadata}
    right = [candidate.key in question.answers or (candidate.uri, candidate.title) in sections for candidate in found]
    return _Asked(scoring.features(question.question, found), np.array(right, dtype=bool), bool(question.answers))


def _stacked(asked: Sequence[_Asked]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.concatenate([one.features for one in asked]), np.concatenate([one.right for one in asked])


def _out_of_fold(asked: Sequence[_Asked]) -> list[tuple[float, bool]]:
    """Each question's best candidate by weights that did not see the question: its mean score, and if it is right."""
    totals = [np.zeros(len(one.right)) for one in asked]
    random = np.random.default_rng(20260101)
    for _ in range(_ROUNDS):
        fold = random.permutation(len(asked)) % _FOLDS
        for number in range(_FOLDS):
            seen = [one for one, its in zip(asked, fold, strict=True) if its != number]
            mean, scale, weights, bias = scoring.fit(*_stacked(seen))
            for i in map(int, np.flatnonzero(fold == number)):
                totals[i] += scoring.sigmoid((asked[i].features - mean) / scale @ weights + bias) / _ROUNDS
    firsts: list[tuple[float, bool]] = []
    for one, scores in zip(asked, totals, strict=True):
        best = int(scores.argmax()) if len(scores) else -1
        firsts.append((float(scores[best]), bool(one.right[best])) if best >= 0 else (0.0, False))
    return firsts


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
