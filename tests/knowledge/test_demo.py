"""The demo shop under the real embedder: what is shipped is what is fitted, and it answers what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.knowledge import scoring
from assistant.knowledge.calibration import calibrate, golden
from assistant.knowledge.library import Library
from assistant.models.store import Store
from assistant.settings import Knowledge
from assistant.storage import Database

pytestmark = pytest.mark.models
DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "golden" / "en"


@pytest.fixture
def shop(prepared_home: Path) -> Iterator[Library]:
    database = Database.at(prepared_home)
    store = Store(prepared_home, database)
    library = Library(prepared_home, database, store, Knowledge())
    library.add([DATA / "knowledge" / "en"], owner="test")
    yield library
    library.close()
    store.close()
    database.close()


def test_shipped_calibration_is_what_a_fresh_fit_gives(shop: Library) -> None:
    """Where this fails, run `calibration.write_built_in` on a library with the demo shop, as this test holds one."""
    fresh = calibrate(shop, GOLDEN / "calibrate.jsonl")
    shipped = scoring.built_in()[fresh.embedder]
    assert shipped.embedder_digest == fresh.embedder_digest
    assert shipped.fitted_on == fresh.fitted_on
    assert shipped.weights == pytest.approx(fresh.weights, abs=1e-3)
    assert shipped.threshold == pytest.approx(fresh.threshold, abs=1e-3)


def test_unseen_questions_are_answered_rightly_or_not_at_all(shop: Library) -> None:
    """The test questions, which nothing was fitted on. The bounds are what was measured, less two standard errors."""
    answered = right = refused = without = 0
    for question in golden(GOLDEN / "test.jsonl"):
        hits = shop.search(question.question)
        answers = bool(hits.hits) and hits.hits[0].score >= hits.threshold
        if question.answers:
            titles = {(chunk.metadata["uri"], chunk.metadata["title"]) for chunk in shop.get(question.answers)}
            answered += answers
            right += answers and (hits.hits[0].uri, hits.hits[0].title) in titles
        else:
            without += 1
            refused += not answers
    assert refused / without >= 0.9
    assert answered >= 20
    assert right / answered >= 0.9


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How do I cancel my order?", "order-cancel"),
        ("when will I get my money back after a return?", "refund-time"),
        ("which payment methods do you accept?", "payment-methods"),
        ("how do I reset my password", "password-reset"),
    ],
)
def test_plain_question_is_answered_by_its_entry(shop: Library, question: str, expected: str) -> None:
    hits = shop.search(question)
    assert hits.hits[0].id == expected
    assert hits.hits[0].score >= hits.threshold


def test_return_period_is_among_the_first_sources(shop: Library) -> None:
    hits = shop.search("how long do I have to send something back?")
    assert "return-window" in {hit.id for hit in hits.hits[:2] if hit.score >= hits.threshold}


@pytest.mark.parametrize(
    "question",
    ["What is the capital of France?", "write me a poem about autumn", "asdf qwer", "2+2", "who won the cup"],
)
def test_question_of_another_world_is_not_answered(shop: Library, question: str) -> None:
    hits = shop.search(question)
    assert hits.hits[0].score < hits.threshold
