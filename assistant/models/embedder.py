"""Texts to vectors with onnxruntime and tokenizers alone: what a question needs on a CPU.

Requests of several threads are run together: whoever comes while a run is going joins the next one. There is no
timer, so a single question waits for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from assistant.models.manifest import EmbedderFacts, Manifest

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
MAX_TEXTS = 32
MAX_TOKENS = 512
"""Of one run, padding included. More is no faster on a CPU, whose caches it leaves, and takes more memory."""
MAX_THREADS = 8
_QUERIES_IN_A_ROW = 8
"""Runs of questions after which one run of documents gets its turn."""


def load(folder: Path, manifest: Manifest) -> OnnxEmbedder:
    """The embedder in `folder`, whose files `manifest` has been verified against."""
    if manifest.embedder is None:
        raise ValueError(f"{manifest.name}: expected an embedder's manifest, found one of a {manifest.kind}")
    return OnnxEmbedder(folder, manifest.embedder, name=manifest.name, digest=identity(manifest))


def identity(manifest: Manifest) -> str:
    """SHA-256 of all that changes a vector: weights, tokenizer, pooling, cut, prefixes.

    It names the weights that were trained, not the graph: exporting them again gives the same identity, so that vectors in a
    database stay valid.
    """
    facts = manifest.embedder.model_dump() if manifest.embedder else {}
    source = "model.safetensors" if "model.safetensors" in manifest.files else GRAPH
    for name in (source, TOKENIZER):
        facts[name] = manifest.files[name].sha256
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False, slots=True)
class _Call:
    """One thread's texts on their way: `rows` fills up, then `wake` is set; it is also set to hand over the lead."""

    rows: NDArray[np.float32]
    left: int
    wake: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    @property
    def finished(self) -> bool:
        return self.left == 0 or self.error is not None


@dataclass(eq=False, slots=True)
class _Item:
    """One text as tokens, and the row of its call that it fills."""

    call: _Call
    row: int
    tokens: list[int]


class OnnxEmbedder:
    """A sentence encoder: mean over the tokens, unit length, float32. Safe to share between threads."""

    def __init__(
        self, folder: Path, facts: EmbedderFacts, *, name: str = "", digest: str = "", threads: int | None = None
    ) -> None:
        self.name = name or folder.name
        self.digest = digest
        self.dimension = facts.dimension
        self.max_tokens = facts.max_tokens
        self._facts = facts
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._session: ort.InferenceSession | None = _session(folder / GRAPH, threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._leading = False
        self._closed = False
        self._waiting: dict[Literal["queries", "documents"], deque[list[_Item]]] = {
            "queries": deque(),
            "documents": deque(),
        }
        self._sorted: dict[Literal["queries", "documents"], deque[list[_Item]]] = {
            "queries": deque(),
            "documents": deque(),
        }
        self._queries_run = 0

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (len(texts), dimension), each of length 1, for questions; these go before waiting documents."""
        return self._embed(texts, self._facts.query_prefix, "queries")

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (len(texts), dimension), each of length 1, for passages, cut after `max_tokens` tokens."""
        return self._embed(texts, self._facts.document_prefix, "documents")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, special ones included, before any cut."""
        return [len(self._tokenizer.encode(_encodable(text)).ids) for text in texts]

    def close(self) -> None:
        """Free the memory once the run that is going has ended; texts still waiting are refused."""
        with self._lock:
            self._closed = True
            for call in {item.call for queue in self._queues() for items in queue for item in items}:
                self._fail(call, RuntimeError(f"{self.name}: the embedder was closed"))
            while self._leading:
                self._idle.wait()
            self._session = None

    def _embed(self, texts: Sequence[str], prefix: str, lane: Literal["queries", "documents"]) -> NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, found one text; put it into a list")
        rows = np.empty((len(texts), self.dimension), np.float32)
        if not len(texts):
            return rows
        call = _Call(rows, len(texts))
        items = [_Item(call, row, self._tokens(prefix + text)) for row, text in enumerate(texts)]
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self.name}: the embedder was closed")
            self._waiting[lane].append(items)
            lead = not self._leading
            self._leading = True
        try:
            if not lead:
                call.wake.wait()
            if not call.finished:
                self._lead(call)
        except BaseException:
            self._abandon(call, lead)
            raise
        if call.error is not None:
            raise call.error
        return rows

    def _tokens(self, text: str) -> list[int]:
        """Token ids between the special ones, cut so that the closing one stays."""
        ids: list[int] = self._tokenizer.encode(_encodable(text)).ids
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _lead(self, call: _Call) -> None:
        """Run what waits, also for others, until `call` is answered; then hand the lead to the next one waiting."""
        while not call.finished:
            with self._lock:
                batch = self._next()
                session = self._session
            if batch:
                assert session is not None, "closed only when nobody leads"
                self._run(session, batch)
        with self._lock:
            self._pass_on()

    def _pass_on(self) -> None:
        """Give up the lead (the lock is held)."""
        for queue in self._queues():
            if queue:
                queue[0][0].call.wake.set()
                return
        self._leading = False
        self._idle.notify_all()

    def _abandon(self, call: _Call, lead: bool) -> None:
        """Clean up after a thread that was interrupted, so that the others go on."""
        with self._lock:
            led = lead or (call.wake.is_set() and not call.finished)
            self._drop(call)
            if led:
                self._pass_on()

    def _queues(self) -> list[deque[list[_Item]]]:
        return [*self._sorted.values(), *self._waiting.values()]

    def _drop(self, call: _Call) -> None:
        """Take out what waits for `call` (the lock is held): a queue must hold nothing that nobody waits for."""
        for queue in self._queues():
            kept = [[item for item in items if item.call is not call] for items in queue]
            queue.clear()
            queue.extend(items for items in kept if items)

    def _next(self) -> list[_Item]:
        """The texts of the next run (the lock is held): questions first, documents not forever after them."""
        documents = self._sorted["documents"] or self._waiting["documents"]
        queries = self._sorted["queries"] or self._waiting["queries"]
        if queries and not (documents and self._queries_run >= _QUERIES_IN_A_ROW):
            self._queries_run += 1
            return self._take("queries")
        self._queries_run = 0
        return self._take("documents") if documents else []

    def _take(self, lane: Literal["queries", "documents"]) -> list[_Item]:
        ready, waiting = self._sorted[lane], self._waiting[lane]
        if not ready:
            together = waiting.popleft()
            while waiting and len(together) + len(waiting[0]) <= MAX_TEXTS:
                together = together + waiting.popleft()
            ready.extend(_batches(together))
        return ready.popleft()

    def _run(self, session: ort.InferenceSession, batch: list[_Item]) -> None:
        try:
            vectors = self._infer(session, [item.tokens for item in batch])
        except BaseException as error:
            with self._lock:
                for call in {item.call for item in batch}:
                    self._fail(call, error)
            if not isinstance(error, Exception):
                raise
            return
        with self._lock:
            for item, vector in zip(batch, vectors, strict=True):
                item.call.rows[item.row] = vector
                item.call.left -= 1
                if item.call.finished:
                    item.call.wake.set()

    def _fail(self, call: _Call, error: BaseException) -> None:
        """End `call` with `error` (the lock is held)."""
        self._drop(call)
        call.error = error
        call.wake.set()

    def _infer(self, session: ort.InferenceSession, tokens: list[list[int]]) -> NDArray[np.float32]:
        """Unit vectors (len(tokens), dimension): the mean of the last hidden states over the tokens, normalised."""
        lengths = np.array([len(ids) for ids in tokens])
        ids = np.zeros((len(tokens), lengths.max()), np.int64)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids[mask] = np.concatenate(tokens)
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = session.run(["last_hidden_state"], {name: feeds[name] for name in self._inputs})
        vectors = (mask[:, None, :].astype(np.float32) @ hidden)[:, 0, :]
        return unit(vectors / lengths[:, None].astype(np.float32))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows of `vectors` scaled to length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return result


def _batches(items: list[_Item]) -> list[list[_Item]]:
    """Micro-batches of similar length, longest first, each of at most `MAX_TEXTS` and `MAX_TOKENS` with its padding."""
    batches: list[list[_Item]] = []
    for item in sorted(items, key=lambda item: -len(item.tokens)):
        last = batches[-1] if batches else None
        if last and len(last) < MAX_TEXTS and (len(last) + 1) * len(last[0].tokens) <= MAX_TOKENS:
            last.append(item)
        else:
            batches.append([item])
    return batches


def _encodable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (half a surrogate pair) replaced; the tokenizer would refuse it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _session(graph: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or min(_cores(), MAX_THREADS)
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it keeps the largest run's memory for good, and is no faster here
    options.enable_mem_pattern = False  # every batch has another shape
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must cost nothing
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _cores() -> int:
    """The cores this process may run on, where the system can say so; else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
