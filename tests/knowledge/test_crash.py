"""What was promised survives a kill at any moment, and nothing else appears."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text

from assistant.knowledge import documents as loaders
from assistant.schema import chunks, documents
from assistant.storage import Database

from .doubles import HashEmbedder, open_library

CHILD = Path(__file__).with_name("doubles.py")
POINTS = (
    "knowledge.read:kill:4",
    "knowledge.split:kill:3",
    "knowledge.embedded:kill:3",
    "knowledge.insert:kill:2",
    "knowledge.insert:kill:9",
    "storage.commit:kill:3",
    "storage.committed:kill:3",
    "index.write:kill",
    "index.fsync:kill",
    "index.rename:kill",
    "index.manifest:kill",
    "index.manifest_fsync:kill",
    "index.manifest_rename:kill",
    "index.sweep:kill",
)
QUERIES = ("alpha topic 3", "answer about beta 7", "section gamma", "delta", "number 12 of topic 4")


@dataclass
class Shop:
    """A folder of files that change between runs, and what each run promised about them."""

    home: Path
    folder: Path
    chance: random.Random
    versions: dict[str, list[bytes]] = field(default_factory=dict)
    promised: dict[str, int] = field(default_factory=dict)  # the version that was there when it was last said so

    def write(self, name: str) -> None:
        """A new version of the file: entries or sections come, go, change and stay."""
        numbers = self.chance.sample(range(20), self.chance.randint(2, 8))
        words = ("alpha", "beta", "gamma", "delta")
        if name.endswith(".csv"):
            rows = (f"{name}-{n},Topic {n} of {words[n % 4]}?,Answer {self.chance.randint(0, 2)}." for n in numbers)
            text = "id,question,answer\n" + "\n".join(rows) + "\n"
        else:
            parts = (
                f"## {words[n % 4]} {n}\n\nSection {self.chance.randint(0, 2)} {'many words ' * n}.\n" for n in numbers
            )
            text = f"# Page {name}\n\n" + "\n".join(parts)
        data = text.encode()
        (self.folder / name).write_bytes(data)
        self.versions.setdefault(name, []).append(data)

    def run(self, *, failpoint: str = "", delay: float | None = None) -> int:
        """Add the folder in a program of its own, killed at a point or after `delay` seconds; its exit code."""
        environment = os.environ | {"FAILPOINT": failpoint}
        command = [sys.executable, str(CHILD), str(self.home), str(self.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            if delay is not None:
                assert child.stdout.readline() == "ready\n"
                time.sleep(delay)
                child.kill()
            for line in child.stdout:
                words = line.split()
                if words[0] in ("added", "changed", "unchanged"):
                    self.promised[words[1]] = len(self.versions[words[1]]) - 1
            return child.wait()

    def problems(self) -> list[str]:
        """What is missing, phantom, duplicate, half or malformed."""
        database = Database.at(self.home)
        with database.read() as connection:
            live = connection.execute(select(documents).where(~documents.c.deleted)).all()
            rows = connection.execute(select(chunks).where(~chunks.c.deleted).order_by(chunks.c.ordinal)).all()
            indexed = set(connection.scalars(text("SELECT rowid FROM chunks_text")))
            check = connection.scalar(text("PRAGMA integrity_check"))
        database.close()
        found = [] if check == "ok" else [f"integrity: {check}"]
        embedder = HashEmbedder()
        digests = {row.uri: row.digest for row in live}
        if len(digests) != len(live):
            found.append("duplicate documents")
        if len({row.key for row in rows}) != len(rows):
            found.append("duplicate chunks")
        if indexed != {row.row for row in rows}:
            found.append("full text differs from the chunks")
        for uri, version in self.promised.items():
            # A later version may have been committed and its run killed before it could say so.
            if digests.get(uri, "") not in {loaders.digest_of(data) for data in self.versions[uri][version:]}:
                found.append(f"missing: {uri}")
        for row in live:
            data = next((d for d in self.versions.get(row.uri, []) if loaders.digest_of(d) == row.digest), None)
            if data is None:
                found.append(f"phantom: {row.uri}")
                continue
            expected = loaders.parse(data, row.uri, embedder, chunk_tokens=64).chunks
            its = [chunk for chunk in rows if chunk.document == row.id]
            if [(c.key, c.title, c.text, c.start, c.end) for c in its] != [
                (c.key, c.title, c.text, c.start, c.end) for c in expected
            ]:
                found.append(f"half: {row.uri}")
            for chunk, content in zip(its, embedder.embed_documents([c.content for c in expected]), strict=False):
                vector = np.frombuffer(chunk.vector, dtype="<f4")
                if vector.shape != (64,) or not np.allclose(vector, content, atol=1e-6):
                    found.append(f"malformed vector: {chunk.key}")
        if {row.document for row in rows} - {row.id for row in live}:
            found.append("chunks without a document")
        return found

    def answers(self, *, rebuilt: bool) -> list[list[tuple[str, float]]]:
        """The top ten of every query, from the index on the disk or from one that was rebuilt."""
        folder = self.home / "index"
        aside = self.home / "aside"
        if rebuilt and folder.exists():
            folder.rename(aside)
        library = open_library(self.home)
        found = [[(h.id, round(h.score, 9)) for h in library.search(query, limit=10).hits] for query in QUERIES]
        library._database.close()
        if rebuilt and aside.exists():
            aside.rename(folder)
        return found

    def settle(self) -> None:
        """After whatever happened: one whole run makes it right, a second one adds nothing."""
        assert self.run() == 0
        assert set(self.promised) == set(self.versions)
        assert self.problems() == []
        library = open_library(self.home)
        again = library.add([self.folder], owner="test")
        library._database.close()
        assert {result.status for result in again} == {"unchanged"}
        assert self.answers(rebuilt=False) == self.answers(rebuilt=True)


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    folder = tmp_path / "files"
    folder.mkdir()
    shop = Shop(tmp_path / "home", folder, random.Random(request.node.name))
    for i in range(5):
        shop.write(f"entries{i}.csv")
        shop.write(f"page{i}.md")
    yield shop
    assert shop.answers(rebuilt=False) == shop.answers(rebuilt=True)


@pytest.mark.parametrize("point", POINTS)
def test_kill_at_a_point_loses_nothing_that_was_promised(shop: Shop, point: str) -> None:
    """REL-02 and REL-03: every step of adding, of committing and of saving the index."""
    assert shop.run(failpoint=point) == -9
    assert shop.problems() == []
    shop.settle()


def _killed_at_random(shop: Shop, rounds: int) -> int:
    """`rounds` runs over changing files, each killed at a random moment; how many died before they were done."""
    started = time.monotonic()
    assert shop.run() == 0
    longest = min(time.monotonic() - started, 0.5)
    died = 0
    for number in range(rounds):
        for name in shop.chance.sample(sorted(shop.versions), 5):
            shop.write(name)
        died += shop.run(delay=shop.chance.random() * longest) == -9
        assert shop.problems() == [], number
        assert shop.answers(rebuilt=False) == shop.answers(rebuilt=True), number
    shop.settle()
    return died


@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing_that_was_promised(shop: Shop) -> None:
    """REL-02: 25 kills at random moments while files are added, replaced and indexed."""
    assert _killed_at_random(shop, 25) >= 10


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_nothing_that_was_promised(shop: Shop) -> None:
    """REL-02, the whole of it."""
    assert _killed_at_random(shop, 200) >= 80


def test_two_programs_that_add_the_same_files_make_one_of_each(shop: Shop) -> None:
    Database.at(shop.home) if shop.home.exists() else open_library(shop.home)
    command = [sys.executable, str(CHILD), str(shop.home), str(shop.folder)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    said = [line.split()[:2] for output in lines for line in output if line not in ("ready", "done")]
    assert sorted(uri for status, uri in said if status == "added") == sorted(shop.versions)
    assert sorted(uri for status, uri in said if status == "unchanged") == sorted(shop.versions)
    assert shop.problems() == []
    shop.settle()


@pytest.mark.parametrize("point", ["storage.commit", "knowledge.insert"])
def test_full_disk_is_said_and_leaves_nothing_half_done(shop: Shop, point: str) -> None:
    """REL-06: the reader is told what to do, and after making room everything goes in."""
    command = [sys.executable, str(CHILD), str(shop.home), str(shop.folder)]
    open_library(shop.home)
    child = subprocess.run(
        command, env=os.environ | {"FAILPOINT": f"{point}:raise"}, capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "UserError: The disk is full: nothing was saved. Make room on it and try again." in child.stderr
    assert shop.problems() == []
    shop.settle()


def test_file_size_limit_is_met_like_a_full_disk(shop: Shop) -> None:
    """REL-06, by the operating system: the database may not grow beyond what it has."""
    open_library(shop.home)._database.close()
    size = (shop.home / "assistant.db").stat().st_size
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 20_000}, {size + 20_000})); "
        f"sys.argv = {[str(CHILD), str(shop.home), str(shop.folder)]!r}; "
        f"runpy.run_path({str(CHILD)!r}, run_name='__main__')"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "UserError: The disk is full" in child.stderr
    assert shop.problems() == []
    shop.settle()
