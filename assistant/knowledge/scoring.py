"""What a candidate's numbers are worth: P(this passage answers the question), by a small logistic model.

The features are free of the collection's size and mostly of its scale, so that weights fitted on one collection serve
another until it has its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from assistant.knowledge.terms import query_terms, stem, terms

BUILT_IN = Path(__file__).with_name("calibration.json")
"""Calibrations for collections without their own, by the embedder's name; written by `calibration.write_built_in`."""

FEATURES = (
    "cosine",  # of question and chunk
    "lead",  # how far that is above the best other candidate (below: negative)
    "rise",  # how far that is above the candidates' median: a near neighbour among far ones
    "text",  # BM25 as a share of the best candidate's
    "coverage",  # share of the question's content terms in title and text, rare ones weigh more
    "entry",  # 1 for an entry, 0 for a passage
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A live chunk that a search found, with its raw numbers."""

    row: int
    key: str
    document: str
    uri: str
    kind: Literal["entry", "passage"]
    title: str
    text: str
    language: str
    cosine: float
    bm25: float


class FittedOn(BaseModel):
    """What a calibration rests on; precision and coverage are cross-validated, at its threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    questions: int
    answerable: int
    precision: float
    coverage: float


class Calibration(BaseModel):
    """Weights over standardised features, and the score from which a hit answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    embedder: str
    embedder_digest: str
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float = Field(ge=0.0, le=1.0)
    fitted_on: FittedOn

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(answers) for each row of `features` (candidates, len(FEATURES)), in [0, 1]."""
        standard = (features - np.asarray(self.mean)) / np.asarray(self.scale)
        return sigmoid(standard @ np.asarray(self.weights) + self.bias)


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result


def features(query: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """The features of each candidate (len(candidates), len(FEATURES)) among the others of its search."""
    if not candidates:
        return np.zeros((0, len(FEATURES)))
    cosine = np.array([candidate.cosine for candidate in candidates])
    bm25 = np.array([candidate.bm25 for candidate in candidates])
    best = max(float(bm25.max()), 1e-9)
    wanted = list(dict.fromkeys(stem(term) for term in query_terms(query)))
    present = np.array([[term in _stems(c.title, c.text) for term in wanted] for c in candidates], dtype=float)
    # A term's weight from the candidates themselves: the database keeps no counts, and a term that none of them
    # has (the thing this collection is not about) must weigh most.
    weight = np.log((len(candidates) + 1.0) / (present.sum(axis=0) + 0.5))
    total = max(float(weight.sum()), 1e-9)
    columns = (
        cosine,
        _lead(cosine),
        cosine - float(np.median(cosine)),
        bm25 / best,
        present @ weight / total,
        np.array([float(candidate.kind == "entry") for candidate in candidates]),
    )
    return np.column_stack(columns)


def fit(
    rows: NDArray[np.float64], answers: NDArray[np.bool_], *, strength: float = 5.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """(mean, scale, weights, bias) of a logistic regression of `answers` on standardised `rows`, L2 of `strength`.

    Newton's method, also called iteratively reweighted least squares: Hastie, Tibshirani, Friedman, The Elements of
    Statistical Learning, 2nd edition, section 4.4.1. The bias carries no penalty.
    """
    mean = rows.mean(axis=0)
    scale = np.where(rows.std(axis=0) > 1e-9, rows.std(axis=0), 1.0)
    design = np.column_stack([np.ones(len(rows)), (rows - mean) / scale])
    penalty = np.diag([1e-6, *[strength] * rows.shape[1]])
    beta = np.zeros(design.shape[1])
    target = answers.astype(float)
    for _ in range(100):
        probability = sigmoid(design @ beta)
        gradient = design.T @ (target - probability) - penalty @ beta
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, gradient)
        largest = float(np.abs(step).max())
        beta = beta + step * min(1.0, 4.0 / max(largest, 1e-12))
        if largest < 1e-9:
            break
    return mean, scale, beta[1:], float(beta[0])


@cache
def built_in() -> dict[str, Calibration]:
    """The calibrations that ship, by the embedder's name."""
    return {name: Calibration.model_validate(value) for name, value in json.loads(BUILT_IN.read_text("utf-8")).items()}


def default(embedder: str) -> Calibration:
    """The calibration for a collection without its own.

    An embedder without a shipped one gets the first: its cosines may be spread otherwise, so calibrate such a collection.
    """
    shipped = built_in()
    return shipped.get(embedder) or next(iter(shipped.values()))


def _lead(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value minus the largest of the others (0 for a value alone)."""
    if len(values) < 2:
        return np.zeros(len(values))
    order = np.argsort(-values, kind="stable")
    others = np.full(len(values), values[order[0]])
    others[order[0]] = values[order[1]]
    result: NDArray[np.float64] = values - others
    return result


@lru_cache(maxsize=1024)
def _stems(title: str, text: str) -> frozenset[str]:
    return frozenset(stem(term) for term in terms(f"{title}\n{text}"))
