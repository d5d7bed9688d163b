"""What must be in place before the first question: the base models and the demo shop. Every step can be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from assistant.app import Assistant
from assistant.errors import UserError
from assistant.identity import LOCAL
from assistant.models.catalog import CATALOG

DATA = Path(__file__).parent.parent / "data"


def prepare(assistant: Assistant, report: Callable[[str], None]) -> None:
    """Put the base models in place and load the demo shop into an empty knowledge base, a line for each step."""
    for name in CATALOG:
        _timed(f"Model {name}", lambda: assistant.models.pull(name), report)  # noqa: B023 - called at once
    collection = assistant.settings.knowledge.collection
    if not _has(assistant, collection) and (DATA / "knowledge").is_dir():
        _timed("Demo shop", lambda: load_demo(assistant, collection), report)


def is_prepared(assistant: Assistant) -> bool:
    """Whether `prepare` has nothing to do; costs two small reads of the database."""
    in_place = {model.name for model in assistant.models.list(check=False) if model.current}
    return set(CATALOG) <= in_place and _has(assistant, assistant.settings.knowledge.collection)


def load_demo(assistant: Assistant, collection: str) -> None:
    """Load the demo shop's entries and policies, and calibrate its scores on the questions written for that."""
    for language in sorted(folder for folder in (DATA / "knowledge").iterdir() if folder.is_dir()):
        added = assistant.knowledge.add([language], collection=collection, owner=LOCAL.id)
        for document in added:
            if document.problem:
                raise UserError(f"The demo shop could not be loaded: {document.path}: {document.problem}")
        questions = DATA / "golden" / language.name / "calibrate.jsonl"
        if questions.exists():
            assistant.knowledge.calibrate(questions, collection=collection)


def _has(assistant: Assistant, collection: str) -> bool:
    return any(stored.name == collection for stored in assistant.knowledge.collections())


def _timed(what: str, work: Callable[[], object], report: Callable[[str], None]) -> None:
    started = time.monotonic()
    report(f"{what} ...")
    work()
    report(f"{what}: ready ({time.monotonic() - started:.1f} s)")
