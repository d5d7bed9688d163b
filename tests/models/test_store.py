"""Models in place: listed, borrowed, replaced under way."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from sqlalchemy import insert

from assistant import schema
from assistant.errors import ArtifactRejected, ModelMissing, PluginError
from assistant.models import manifest
from assistant.models.embedder import OnnxEmbedder
from assistant.models.store import Store
from assistant.services import Embedder, ModelStore
from assistant.storage import Database

Rows: TypeAlias = Callable[[], tuple[list[str], list[tuple[str, str | None]]]]


def put(home: Path, database: Database, source: Path, version: str, *, name: str = "tiny") -> str:
    """A version of an embedder in place with its row, as training publishes one; returns its full name."""
    facts = json.loads((source / manifest.FILE).read_bytes()) | {"files": {}, "name": name, "version": version}
    target = home / "models" / name / version
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(manifest.FILE))
    digest = manifest.write(target, manifest.Manifest.model_validate(facts))
    card = {"licence": "MIT", "source": "trained", "parameters": 1, "size": 1, "dtype": "float32", "embedder": None}
    values = {
        "name": name,
        "version": version,
        "kind": "embedder",
        "manifest_digest": digest,
        "card": card,
        "created": 0.0,
    }
    database.write(lambda connection: connection.execute(insert(schema.models).values(**values)) and None)
    return version


def test_list_shows_what_could_be_pulled(store: Store) -> None:
    (entry,) = store.list()

    assert (entry.name, entry.in_place, entry.current, entry.in_catalog) == ("tiny", False, False, True)
    assert entry.problem == "not in place: run `assistant models pull tiny`"


def test_list_without_check_reads_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pull("tiny")
    monkeypatch.setattr(manifest, "verify", lambda *_: pytest.fail("read"))

    assert [entry.current for entry in store.list(check=False)] == [True]


def test_the_store_is_the_service(store: Store) -> None:
    assert isinstance(store, ModelStore)


def test_use_of_a_missing_model_names_the_cure(store: Store) -> None:
    with (
        pytest.raises(ModelMissing, match=r"The model tiny is not in place: run `assistant models pull tiny`\."),
        store.use("tiny", OnnxEmbedder),
    ):
        pass
    with pytest.raises(ModelMissing, match="There is no model 'gpt'"), store.use("gpt", OnnxEmbedder):
        pass


def test_use_as_another_kind_is_the_authors_error(
    store: Store, tmp_path: Path, database: Database, pulled_encoder: Path
) -> None:
    store.pull("tiny")
    put(tmp_path, database, pulled_encoder, "1", name="encoder")
    store.promote("encoder", "1", author="a")

    with (
        pytest.raises(PluginError, match="tiny: expected a model that is a OnnxEmbedder, found a generator"),
        store.use("tiny", OnnxEmbedder),
    ):
        pass
    with (
        pytest.raises(PluginError, match="encoder: expected a model that is a Path, found a OnnxEmbedder"),
        store.use("encoder", Path),
    ):
        pass


@pytest.fixture
def two(store: Store, tmp_path: Path, database: Database, pulled_encoder: Path) -> Store:
    """A store with the versions "1" and "2" of the embedder "tiny"; the first is current."""
    put(tmp_path, database, pulled_encoder, "1")
    put(tmp_path, database, pulled_encoder, "2")
    store.promote("tiny", "1", author="a")
    return store


def is_open(model: Embedder) -> bool:
    try:
        return model.embed_queries(["refund"]).shape == (1, 32)
    except RuntimeError:
        return False


def test_use_gives_the_same_model_to_all(two: Store) -> None:
    with two.use("tiny", OnnxEmbedder) as first, two.use("tiny", OnnxEmbedder) as second:
        assert first is second
    with two.use("tiny", OnnxEmbedder) as third:
        assert third is first


def test_a_promoted_version_is_used_by_the_next_borrower(two: Store, rows: Rows) -> None:
    """REL-05: who holds the old version keeps it; it is closed when the last gives it back."""
    with two.use("tiny", OnnxEmbedder) as old:
        two.promote("tiny", "2", author="b")
        with two.use("tiny", OnnxEmbedder) as new:
            assert new is not old
            assert is_open(old)
    assert not is_open(old)
    assert is_open(new)
    assert rows()[1] == [("2", "1")]


def test_an_idle_old_version_is_closed_when_the_new_one_is_used(two: Store) -> None:
    with two.use("tiny", OnnxEmbedder) as old:
        pass
    two.promote("tiny", "2", author="b")
    with two.use("tiny", OnnxEmbedder) as new:
        assert not is_open(old)
        assert is_open(new)


def test_roll_back_is_the_same_move(two: Store, rows: Rows) -> None:
    """REL-05"""
    two.promote("tiny", "2", author="b")
    two.promote("tiny", "1", author="b")
    two.promote("tiny", "1", author="b")

    assert rows()[1] == [("1", "2")]
    with two.use("tiny", OnnxEmbedder) as model:
        assert is_open(model)


def test_only_a_sound_version_is_promoted(two: Store, tmp_path: Path, rows: Rows) -> None:
    """SEC-02"""
    (tmp_path / "models" / "tiny" / "2" / "extra.json").write_text("{}")

    with pytest.raises(ArtifactRejected, match=r"not in the manifest: extra\.json"):
        two.promote("tiny", "2", author="b")
    with pytest.raises(ModelMissing, match=r"There is no version '3' of tiny\. In place: 1, 2\."):
        two.promote("tiny", "3", author="b")
    assert rows()[1] == [("1", None)]


def test_a_spoilt_version_is_never_loaded(two: Store, tmp_path: Path) -> None:
    """SEC-02"""
    path = tmp_path / "models" / "tiny" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(ArtifactRejected, match=r"model\.onnx is not the file"), two.use("tiny", OnnxEmbedder):
        pass


def test_a_trained_version_that_is_spoilt_is_kept(two: Store, tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "models" / "tiny" / "1" / "vocab.txt").unlink()

    base = two.pull("tiny")

    assert base.kind == "generator"
    assert sorted(rows()[0]) == sorted(["1", "2", base.version])
    assert rows()[1] == [(base.version, "1")]
    assert (tmp_path / "models" / "tiny" / "1").is_dir()


def test_swapping_under_load_never_shows_a_closed_model(two: Store) -> None:
    """REL-05: every borrower sees the old or the new version, whole."""
    stop = threading.Event()
    problems: list[BaseException] = []
    seen: set[int] = set()

    def work() -> None:
        try:
            while not stop.is_set():
                with two.use("tiny", OnnxEmbedder) as model:
                    seen.add(id(model))
                    assert model.embed_queries(["where is my parcel"]).shape == (1, 32)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        two.promote("tiny", "21"[turn % 2], author="b")
    stop.set()
    for thread in threads:
        thread.join()

    assert problems == []
    assert seen


def test_close_frees_models_after_their_last_borrower(two: Store) -> None:
    with two.use("tiny", OnnxEmbedder) as model:
        two.close()
        assert is_open(model)
    assert not is_open(model)
    with pytest.raises(RuntimeError, match="the model store is closed"), two.use("tiny", OnnxEmbedder):
        pass
