"""The index file: a cache that may be lost, damaged or cut short at any step, and never lies."""

from __future__ import annotations

import fcntl
import json
import logging
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from assistant.errors import ArtifactRejected
from assistant.knowledge import generations as files
from assistant.knowledge.generations import Generations
from assistant.knowledge.index import VectorIndex
from assistant.knowledge.library import Library
from assistant.storage import current_sequence

from .doubles import open_library

COUNT = 300
SIZE = 16


def unit(count: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    result: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return result


def filled(sequence: int = 1, count: int = COUNT) -> VectorIndex:
    index = VectorIndex(SIZE)
    index.put(np.arange(1, count + 1), unit(count))
    index.sequence = sequence
    return index


def answers(index: VectorIndex) -> list[list[tuple[int, float]]]:
    return [index.search(vector, 10) for vector in unit(5, seed=9)]


@pytest.fixture
def saved(tmp_path: Path) -> Generations:
    """Two generations, at the changes 1 and 2."""
    generations = Generations(tmp_path / "index", "digest")
    assert generations.save(filled(1).freeze())
    assert generations.save(filled(2).freeze())
    return generations


def newest(generations: Generations, suffix: str) -> Path:
    return max(generations.folder.glob(f"*{suffix}"))


def test_search_gives_the_nearest_first_and_no_padding() -> None:
    index = filled(count=3)
    found = index.search(unit(3)[1], 10)
    assert (found[0][0], len(found)) == (2, 3)
    assert found[0][1] == pytest.approx(1.0, abs=1e-6)
    assert found[1][1] >= found[2][1]
    assert VectorIndex(SIZE).search(unit(1)[0], 5) == []


def test_put_replaces_and_drop_keeps_the_other_rows_in_place() -> None:
    index = filled(count=3)
    vectors = unit(3)
    index.put(np.array([2]), vectors[:1])
    index.drop(np.array([1, 77]))
    assert sorted(index.rows().tolist()) == [2, 3]
    assert index.search(vectors[2], 1)[0][0] == 3
    assert index.search(vectors[0], 1)[0][0] == 2


def test_vectors_of_another_size_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"expected vectors of shape \(1, 16\), found \(1, 8\)"):
        VectorIndex(SIZE).put(np.array([1]), np.ones((1, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="expected a vector of 16 values"):
        filled().search(np.ones(8, dtype=np.float32), 1)


def test_saved_index_answers_as_the_one_in_memory(saved: Generations) -> None:
    found = saved.load(SIZE, newest=2)
    assert found is not None
    assert (len(found), found.sequence) == (COUNT, 2)
    assert answers(found) == answers(filled())


def test_two_generations_are_kept(saved: Generations) -> None:
    saved.save(filled(3).freeze())
    names = sorted(path.name[12:] for path in saved.folder.iterdir() if path.name != "lock")
    assert names == [".00000002.faiss", ".00000002.json", ".00000003.faiss", ".00000003.json"]


def test_nothing_is_written_where_nothing_moved(saved: Generations) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in saved.folder.iterdir()}
    assert not saved.save(filled(2).freeze())
    assert {path.name: path.stat().st_mtime_ns for path in saved.folder.iterdir()} == before


def test_process_that_does_not_get_the_lock_does_not_write(saved: Generations) -> None:
    with (saved.folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not saved.save(filled(3).freeze())
    assert saved.save(filled(3).freeze())


def test_generation_ahead_of_the_database_is_passed_over(saved: Generations) -> None:
    found = saved.load(SIZE, newest=1)
    assert found is not None
    assert found.sequence == 1
    assert saved.load(SIZE, newest=0) is None


def test_another_embedders_index_is_not_taken(saved: Generations) -> None:
    assert Generations(saved.folder, "other").load(SIZE, newest=2) is None
    assert saved.load(SIZE + 1, newest=2) is None


def test_sweep_leaves_foreign_files_alone_and_takes_half_written_ones(saved: Generations) -> None:
    mine = saved.folder / "notes.txt"
    mine.write_text("mine")
    half = saved.folder / f"{newest(saved, '.json').name}.tmp"
    half.write_text("{")
    saved.save(filled(3).freeze())
    assert mine.exists()
    assert not half.exists()


def flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ (1 << random.Random(offset).randrange(8))]) + data[offset + 1 :]


def test_every_flipped_bit_of_an_index_is_noticed_before_it_is_parsed(
    saved: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEC-02, REL-03: a flip at 200 offsets of the newest file; the generation before serves."""
    path = newest(saved, ".faiss")
    whole = path.read_bytes()
    expected = answers(filled())
    parsed: list[bytes] = []
    parse = VectorIndex.from_bytes

    def watched(data: bytes, dimension: int) -> VectorIndex:
        parsed.append(data)
        return parse(data, dimension)

    monkeypatch.setattr(VectorIndex, "from_bytes", watched)
    for offset in random.Random(1).sample(range(len(whole)), 200):
        path.write_bytes(flip(whole, offset))
        found = saved.load(SIZE, newest=2)
        assert found is not None, offset
        assert found.sequence == 1, offset
        assert answers(found) == expected, offset
    assert set(parsed) == {newest(saved, "1.faiss").read_bytes()}


def test_flipped_bits_of_a_manifest_never_bring_up_other_vectors(saved: Generations) -> None:
    """A flip that leaves the manifest's meaning as it was may pass; one that does not must not."""
    path = newest(saved, ".json")
    whole = path.read_bytes()
    expected = answers(filled())
    for offset in range(len(whole)):
        path.write_bytes(flip(whole, offset))
        found = saved.load(SIZE, newest=2)
        assert found is not None, offset
        assert answers(found) == expected, offset
        assert found.sequence in (0, 1, 2), offset


def written(change: Callable[[bytes], bytes], which: int) -> Damage:
    """A damage that writes other bytes into the index (0) or its manifest (1)."""

    def damage(*paths: Path) -> None:
        paths[which].write_bytes(change(paths[which].read_bytes()))

    return damage


Damage = Callable[[Path, Path], None]
DAMAGES: dict[str, Damage] = {
    "cut short": written(lambda data: data[:-100], 0),
    "emptied": written(lambda data: b"", 0),
    "zeros": written(lambda data: bytes(len(data)), 0),
    "longer": written(lambda data: data + b"x", 0),
    "absent": lambda index, manifest: index.unlink(),
    "manifest cut short": written(lambda data: data[:50], 1),
    "manifest no text": written(lambda data: b"\xff\xfe", 1),
    "manifest with more": written(lambda data: data.replace(b"{", b'{"x":1,', 1), 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_newest_generation_gives_way_to_the_one_before(
    saved: Generations, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    """REL-03: within a second, with a warning, and the next save writes a whole one again."""
    damage(newest(saved, ".faiss"), newest(saved, ".json"))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = saved.load(SIZE, newest=2)
    assert time.monotonic() - started < 1
    assert found is not None
    assert found.sequence == 1
    assert answers(found) == answers(filled())
    assert "passed over" in caplog.text
    assert saved.save(filled(2).freeze())
    again = saved.load(SIZE, newest=2)
    assert again is not None
    assert again.sequence == 2


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    generations = Generations(tmp_path, "digest")
    generations.save(filled(1, count=10).freeze())
    generations.save(filled(2, count=20).freeze())
    one, two = sorted(tmp_path.glob("*.faiss"))
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)
    assert generations.load(SIZE, newest=2) is None


def test_manifest_cannot_name_a_file_elsewhere(saved: Generations) -> None:
    for path in saved.folder.glob("*.json"):
        value = json.loads(path.read_text())
        path.write_text(json.dumps(value | {"file": "../../etc/passwd"}))
    assert saved.load(SIZE, newest=2) is None


def test_other_kinds_of_index_are_refused_though_their_digest_is_right() -> None:
    """SEC-01: what the parser would accept is more than this program writes."""
    import faiss

    for index in (faiss.IndexFlatL2(SIZE), faiss.IndexIDMap2(faiss.IndexFlatL2(SIZE)), faiss.IndexHNSWFlat(SIZE, 4)):
        data = faiss.serialize_index(index).tobytes()
        with pytest.raises(ArtifactRejected, match="expected IndexIDMap2"):
            VectorIndex.from_bytes(data, SIZE)
    with pytest.raises(ArtifactRejected, match="expected a FAISS index"):
        VectorIndex.from_bytes(b"nonsense" * 20, SIZE)


@pytest.fixture
def shop(home: Path, tmp_path: Path) -> Library:
    """A library of 60 entries whose index was saved twice."""
    library = open_library(home)
    for part in ("a", "b"):
        rows = "".join(f"{part}{i},Question {part}{i} about topic {i % 7}?,Answer {i}.\n" for i in range(30))
        (tmp_path / f"{part}.csv").write_text(f"id,question,answer\n{rows}")
        library.add([tmp_path / f"{part}.csv"], owner="test")
    library.close()
    return library


def found_by(library: Library) -> list[list[tuple[str, float]]]:
    queries = ("topic 3", "question a7", "answer 12", "question b28 about topic 0")
    return [[(hit.id, round(hit.score, 9)) for hit in library.search(query, limit=10).hits] for query in queries]


def test_library_starts_from_the_saved_index_and_reads_no_vector(
    shop: Library, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found_by(shop)
    put: list[int] = []
    monkeypatch.setattr(VectorIndex, "put", lambda self, rows, vectors: put.append(len(rows)))
    assert found_by(open_library(home)) == expected
    assert put == []


@pytest.mark.parametrize("lost", ["newest", "all", "damaged"])
def test_library_answers_the_same_without_its_index_files(shop: Library, home: Path, lost: str) -> None:
    """REL-03: the top ten are those of an index that was rebuilt from the database."""
    expected = found_by(shop)
    folder = home / "index" / "test"
    if lost == "all":
        shutil.rmtree(folder)
    for path in [max(folder.glob("*.faiss"))] if lost == "newest" else folder.glob("*.faiss"):
        path.write_bytes(b"damaged")
    library = open_library(home)
    assert found_by(library) == expected


def test_index_of_another_database_is_rebuilt(shop: Library, home: Path, tmp_path: Path) -> None:
    """A state folder whose database was put back from a copy, and moved on since."""
    other = open_library(tmp_path / "other")
    (tmp_path / "c.csv").write_text("id,question,answer\nx,One?,Two.\n")
    other.add([tmp_path / "c.csv"], owner="test")
    (tmp_path / "c.csv").write_text("id,question,answer\nx,One?,Two.\ny,Topic 3?,Yes.\n")
    other.add([tmp_path / "c.csv"], owner="test")
    expected = found_by(other)
    shutil.rmtree(tmp_path / "other" / "index", ignore_errors=True)
    shutil.copytree(home / "index", tmp_path / "other" / "index")
    assert found_by(open_library(tmp_path / "other")) == expected


def test_small_change_is_not_worth_a_new_file_but_a_larger_is(shop: Library, home: Path, tmp_path: Path) -> None:
    shop.add_texts([f"text {i}" for i in range(140)], ids=[f"t{i}" for i in range(140)], owner="test")
    shop.save_index()
    folder = home / "index" / "test"
    before = newest_sequence(folder)
    shop.remove("a0")
    shop.save_index()
    assert newest_sequence(folder) == before
    for i in range(1, 4):
        shop.remove(f"a{i}")
    shop.save_index()
    with shop._database.read() as connection:
        assert newest_sequence(folder) == current_sequence(connection)


def test_full_disk_while_saving_is_a_warning_and_nothing_more(
    shop: Library, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """REL-06."""

    def full(name: str) -> None:
        if name == "index.fsync":
            raise OSError(28, "No space left on device")

    shop.add_texts(["alpha", "beta"], ids=["m", "n"], owner="test")
    monkeypatch.setattr(files, "failpoint", full)
    with caplog.at_level(logging.WARNING):
        shop.save_index()
    assert "was not saved" in caplog.text
    assert list((home / "index" / "test").glob("*.tmp")) == []
    assert shop.search("alpha").hits[0].id == "m"
    assert open_library(home).search("alpha").hits[0].id == "m"


def newest_sequence(folder: Path) -> int:
    return int(json.loads(max(folder.glob("*.json")).read_text())["sequence"])
