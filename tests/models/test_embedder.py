"""Texts to vectors: the same ones whatever they are batched with, and however many threads ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assistant.models import embedder, manifest
from assistant.models.embedder import OnnxEmbedder
from assistant.models.manifest import EmbedderFacts
from assistant.services import Embedder

TEXTS = [
    "",
    "refund",
    "where is my parcel?",
    "how long do i have to send something back",
    "我想退款",
    "😀 thanks",
    "refund order 1 2 3 " * 40,
    "a",
    *("the order " * count for count in range(1, 30)),
]


@pytest.fixture
def model(pulled_encoder: Path, facts: EmbedderFacts) -> Iterator[OnnxEmbedder]:
    model = OnnxEmbedder(pulled_encoder, facts, name="tiny", digest="0" * 64)
    yield model
    model.close()


def test_it_is_the_service(model: OnnxEmbedder) -> None:
    assert isinstance(model, Embedder)
    assert (model.name, model.dimension, model.max_tokens) == ("tiny", 32, 64)


def test_vectors_are_float32_of_length_one(model: OnnxEmbedder) -> None:
    vectors = model.embed_documents(TEXTS)

    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_rows(model: OnnxEmbedder) -> None:
    assert model.embed_queries([]).shape == (0, 32)
    assert model.embed_queries([]).dtype == np.float32


def test_many_are_as_one_by_one(model: OnnxEmbedder) -> None:
    """Order and batch do not matter: padding is masked, rows come back in the order of the texts."""
    together = model.embed_documents(TEXTS)
    alone = np.concatenate([model.embed_queries([text]) for text in TEXTS])

    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(model.embed_documents(TEXTS[::-1])[::-1] - together).max() <= 1e-5


def test_different_texts_have_different_vectors(model: OnnxEmbedder) -> None:
    first, second, third = model.embed_queries(["refund", "where is my parcel?", "refund"])

    assert np.abs(first - third).max() <= 1e-6
    assert np.abs(first - second).max() > 0.01


def test_what_is_beyond_the_cut_changes_nothing(model: OnnxEmbedder) -> None:
    cut = "refund " * 62
    short, exact, longer, longest = model.embed_documents([cut[:-7], cut, cut + "parcel", cut + "parcel " * 500])

    assert np.abs(exact - longer).max() <= 1e-6
    assert np.abs(exact - longest).max() <= 1e-6
    assert np.abs(exact - short).max() > 1e-6


def test_tokens_are_counted_before_the_cut(model: OnnxEmbedder) -> None:
    assert model.count_tokens(["", "refund", "where is my parcel?", "refund " * 500]) == [2, 3, 7, 502]
    assert model.count_tokens([]) == []


def test_half_a_surrogate_pair_is_embedded(model: OnnxEmbedder) -> None:
    assert model.embed_queries(["refund \ud83d"]).shape == (1, 32)
    assert model.count_tokens(["\udc00"]) == [3]


def test_one_text_instead_of_a_list_is_refused(model: OnnxEmbedder) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        model.embed_queries("refund")


def test_the_prefixes_are_put_before(pulled_encoder: Path, facts: EmbedderFacts, model: OnnxEmbedder) -> None:
    update = {"query_prefix": "order ", "document_prefix": "parcel "}
    prefixed = OnnxEmbedder(pulled_encoder, facts.model_copy(update=update))

    assert np.array_equal(prefixed.embed_queries(["refund"]), model.embed_queries(["order refund"]))
    assert np.array_equal(prefixed.embed_documents(["refund"]), model.embed_documents(["parcel refund"]))


def test_batches_keep_to_the_budget() -> None:
    lengths = [3, 200, 7, 7, 64, 512, 9, 900, *([5] * 100)]
    items = [embedder._Item(embedder._Call(np.empty((1, 1), np.float32), 1), 0, [0] * length) for length in lengths]

    batches = embedder._batches(items)

    assert sorted(len(item.tokens) for batch in batches for item in batch) == sorted(lengths)
    for batch in batches:
        padded = len(batch) * max(len(item.tokens) for item in batch)
        assert len(batch) == 1 or (padded <= embedder.MAX_TOKENS and len(batch) <= embedder.MAX_TEXTS)


class Gate:
    """Holds the first run until it is opened, and notes how many texts each run had."""

    def __init__(self, model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.runs: list[int] = []
        self.fail: Exception | None = None
        infer = model._infer

        def gated(session: Any, tokens: list[list[int]]) -> Any:
            self.runs.append(len(tokens))
            self.entered.set()
            assert self.open.wait(10)
            if self.fail is not None:
                raise self.fail
            return infer(session, tokens)

        monkeypatch.setattr(model, "_infer", gated)


def background(work: Any, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work(*arguments))
        except Exception as error:  # noqa: BLE001 - handed to the test
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_who_comes_during_a_run_shares_the_next(model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.embed_queries([f"order {number}" for number in range(12)])
    gate = Gate(model, monkeypatch)
    first = background(model.embed_queries, ["refund"])
    assert gate.entered.wait(10)
    others = [background(model.embed_queries, [f"order {number}"]) for number in range(12)]
    until(lambda: len(model._waiting["queries"]) == 12)
    gate.open.set()
    for thread, _ in [first, *others]:
        thread.join(10)

    assert gate.runs == [1, 12]
    assert np.abs(np.concatenate([result[0] for _, result in others]) - expected).max() <= 1e-5


def test_a_question_goes_before_documents_that_wait(model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model, monkeypatch)
    documents, stored = background(model.embed_documents, ["order " * 60] * 100)
    assert gate.entered.wait(10)
    question, answered = background(model.embed_queries, ["refund"])
    until(lambda: len(model._waiting["queries"]) == 1)
    gate.open.set()
    question.join(10)
    documents.join(10)

    assert gate.runs.index(1) == 1
    assert (answered[0].shape, stored[0].shape) == ((1, 32), (100, 32))


def test_documents_are_not_kept_waiting_for_ever(model: OnnxEmbedder) -> None:
    """However many questions come, a run of documents gets its turn."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            model.embed_queries(["refund"])

    askers = [background(ask)[0] for _ in range(4)]
    documents, stored = background(model.embed_documents, ["order " * 50] * 50)
    documents.join(20)
    stop.set()
    for asker in askers:
        asker.join(10)

    assert stored[0].shape == (50, 32)


def test_a_failed_run_fails_those_in_it_alone(model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model, monkeypatch)
    gate.fail = MemoryError("no room")
    failing, failed = background(model.embed_documents, ["order " * 60] * 20)
    assert gate.entered.wait(10)
    waiting, waited = background(model.embed_queries, ["refund"])
    until(lambda: len(model._waiting["queries"]) == 1)
    monkeypatch.undo()
    gate.open.set()
    failing.join(10)
    waiting.join(10)

    assert isinstance(failed[0], MemoryError)
    assert waited[0].shape == (1, 32)
    assert model.embed_queries(["refund"]).shape == (1, 32)


def test_an_interrupted_run_does_not_stop_the_others(model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    infer, entered, go = model._infer, threading.Event(), threading.Event()

    def interrupted(session: Any, tokens: list[list[int]]) -> Any:
        if len(tokens) == 3:
            entered.set()
            assert go.wait(10)
            raise KeyboardInterrupt
        return infer(session, tokens)

    monkeypatch.setattr(model, "_infer", interrupted)
    caught: list[BaseException] = []

    def lead() -> None:
        try:
            model.embed_queries(["refund"] * 3)
        except KeyboardInterrupt as error:
            caught.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    assert entered.wait(10)
    waiting, waited = background(model.embed_queries, ["refund"])
    until(lambda: len(model._waiting["queries"]) == 1)
    go.set()
    leader.join(10)
    waiting.join(10)

    assert len(caught) == 1
    assert waited[0].shape == (1, 32)


def test_many_threads_get_their_own_vectors(model: OnnxEmbedder) -> None:
    expected = model.embed_documents(TEXTS)
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            chosen = random.integers(0, len(TEXTS), size=random.integers(1, 6))
            embed = model.embed_queries if random.random() < 0.5 else model.embed_documents
            found = embed([TEXTS[index] for index in chosen])
            if np.abs(found - expected[chosen]).max() > 1e-5:
                wrong.append(f"{seed}: {chosen}")

    threads = [background(work, seed) for seed in range(8)]
    for thread, _ in threads:
        thread.join(30)

    assert [result for _, result in threads] == [[None]] * 8
    assert wrong == []


def test_close_refuses_what_waits_and_ends_what_runs(model: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model, monkeypatch)
    running, ran = background(model.embed_queries, ["refund"])
    assert gate.entered.wait(10)
    waiting, waited = background(model.embed_queries, ["order"])
    until(lambda: len(model._waiting["queries"]) == 1)
    closing, closed = background(model.close)
    waiting.join(10)
    assert isinstance(waited[0], RuntimeError)
    assert closing.is_alive()
    gate.open.set()
    running.join(10)
    closing.join(10)

    assert ran[0].shape == (1, 32)
    assert closed == [None]
    with pytest.raises(RuntimeError, match="tiny: the embedder was closed"):
        model.embed_queries(["refund"])
    model.close()


def test_the_identity_is_that_of_what_changes_vectors(pulled_encoder: Path) -> None:
    """Exporting again keeps stored vectors valid; other weights, tokens or prefixes do not."""
    facts = manifest.verify(pulled_encoder, manifest.digest(pulled_encoder))
    assert facts.embedder is not None

    def changed(name: str) -> str:
        record = facts.files[name].model_copy(update={"sha256": "0" * 64})
        return embedder.identity(facts.model_copy(update={"files": {**facts.files, name: record}}))

    prefixed = facts.embedder.model_copy(update={"query_prefix": "query: "})
    same = embedder.identity(facts)
    assert changed("model.onnx") == same
    assert len({same, changed("model.safetensors"), changed("tokenizer.json")}) == 3
    assert embedder.identity(facts.model_copy(update={"embedder": prefixed})) != same


def test_only_an_embedder_is_loaded(pulled_encoder: Path) -> None:
    facts = manifest.verify(pulled_encoder, manifest.digest(pulled_encoder))

    assert embedder.load(pulled_encoder, facts).name == "tiny"
    with pytest.raises(ValueError, match="expected an embedder's manifest, found one of a embedder"):
        embedder.load(pulled_encoder, facts.model_copy(update={"embedder": None}))
