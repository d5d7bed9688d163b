"""The real base model: the same vectors as sentence-transformers, without torch, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from assistant.models import onnx
from assistant.models.embedder import OnnxEmbedder
from assistant.models.store import Store
from assistant.storage import Database

pytestmark = pytest.mark.models
NAME = "all-minilm-l6-v2"

FIRST = """
import json, sys, time
started = time.monotonic()
from pathlib import Path
from assistant.models.store import Store
from assistant.services import Embedder
from assistant.storage import Database
home = Path(sys.argv[1])
database = Database.at(home)
store = Store(home, database)
with store.use("all-minilm-l6-v2", Embedder) as embedder:
    vectors = embedder.embed_queries(["how long do I have to send something back?"])
heavy = [name for name in ("torch", "transformers", "sentence_transformers", "langchain_core", "gradio") if name in sys.modules]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024  # getrusage would count the process that started this one
print(json.dumps({"heavy": heavy, "shape": vectors.shape, "peak": peak, "seconds": time.monotonic() - started}))
"""


@pytest.fixture(scope="module")
def model(model_home: Path) -> Iterator[OnnxEmbedder]:
    database = Database.at(model_home)
    store = Store(model_home, database)
    with store.use(NAME, OnnxEmbedder) as model:
        yield model
    store.close()
    database.close()


@pytest.mark.slow
def test_it_gives_the_vectors_of_sentence_transformers(model: OnnxEmbedder, model_home: Path) -> None:
    """In a process of its own, as torch must not stay in the one that runs the tests."""
    database = Database.at(model_home)
    version = next(
        entry.version for entry in Store(model_home, database).list() if entry.name == NAME and entry.current
    )
    database.close()
    code = (
        "import json, sys; from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu', local_files_only=True)\n"
        "print(json.dumps(model.encode(json.load(sys.stdin), normalize_embeddings=True).tolist()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(model_home / "models" / NAME / version)],
        input=json.dumps(onnx.TEXTS),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = np.array(json.loads(run.stdout.splitlines()[-1]), np.float32)

    assert np.abs(model.embed_documents(onnx.TEXTS) - expected).max() <= 1e-4


def test_many_are_as_one_by_one(model: OnnxEmbedder) -> None:
    together = model.embed_documents(onnx.TEXTS)
    alone = np.concatenate([model.embed_queries([text]) for text in onnx.TEXTS])

    assert np.abs(together - alone).max() <= 1e-5


def test_near_meanings_have_near_vectors(model: OnnxEmbedder) -> None:
    question = model.embed_queries(["how long do I have to send something back?"])[0]
    returns, weather = model.embed_documents(
        ["You can return items within 30 days.", "It will rain in Paris tomorrow."]
    )

    assert question @ returns > question @ weather + 0.2


def test_its_facts(model: OnnxEmbedder) -> None:
    """The identity is pinned: another one would make every stored vector invalid."""
    assert (model.dimension, model.max_tokens) == (384, 256)
    assert model.digest == "b3800498b109d7d2165df3fee3ce8496f0a9392b5801890067f32cb3534aa6a8"


def test_the_first_vector_needs_no_torch_and_little_memory(model_home: Path) -> None:
    """PERF-01: the model's part of it."""
    run = subprocess.run([sys.executable, "-c", FIRST, str(model_home)], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)

    assert found["heavy"] == []
    assert found["shape"] == [1, 384]
    assert found["peak"] <= 270
    assert found["seconds"] <= 3
