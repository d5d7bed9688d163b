"""The doctor: a row for each thing, red where something is wrong, with a cure; and it never falls ill itself."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from assistant import doctor, schema
from assistant.doctor import Row, examine
from assistant.settings import Knowledge, Server, Settings
from assistant.storage import Database, now

Answer = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with a fresh database, for its owner alone."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    Database.at(folder).close()
    return folder


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Lets a function stand for the process that asks torch."""

    def answer(function: Answer) -> None:
        monkeypatch.setattr(subprocess, "run", function)

    answer(_says({"version": "2.13.0+cpu", "cuda": [], "mps": False}))
    return answer


def _says(value: object) -> Answer:
    return lambda command, **_: subprocess.CompletedProcess(command, 0, f"a warning\n{json.dumps(value)}\n", "")


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that somebody else listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def row(rows: list[Row], name: str) -> Row:
    """The row of that name."""
    (found,) = [row for row in rows if row.name == name]
    return found


def settings(port: int = 0, host: str = "127.0.0.1") -> Settings:
    """Settings that listen there."""
    return Settings(server=Server(host=host, port=port))


# All together


def test_everything_has_a_row_and_every_bad_row_a_cure(home: Path, torch: object) -> None:
    rows = examine(home, settings())
    names = [row.name for row in rows]
    assert names[:5] == ["Python", "packages", "device", "disk", "state folder"]
    assert names[5] == "database"
    assert names[-1] == "port"
    assert all(name.startswith("model ") for name in names[6:-1])
    assert all(row.cure for row in rows if row.state != "ok")
    assert not any(row.cure for row in rows if row.state == "ok")


def test_a_check_that_breaks_is_a_bad_row_and_the_others_are_there(
    home: Path, torch: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> list[Row]:
        raise RuntimeError("no such\nluck")

    monkeypatch.setattr(doctor, "_disk", broken)
    rows = examine(home, settings())
    assert row(rows, "disk") == Row(
        "disk",
        "bad",
        "could not be examined: RuntimeError: no such luck",
        "Mend what the reason names and ask again",
    )
    assert row(rows, "port").state == "ok"


def test_looking_makes_nothing(tmp_path: Path, torch: object) -> None:
    rows = examine(tmp_path / "none" / "state", settings())
    assert list(tmp_path.iterdir()) == []
    assert row(rows, "state folder").state == "warn"
    assert row(rows, "database").state == "warn"


# Python and packages


def test_a_python_below_3_11_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    (found,) = doctor._python()
    assert (found.state, found.cure) == ("bad", "Install Python 3.11 or newer and run `python3.11 launch.py`")


def _lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pins: str) -> Row:
    path = tmp_path / "run.txt"
    path.write_text("# head\n" + "".join(f"{pin} \\\n    --hash=sha256:aa\n" for pin in pins), encoding="utf-8")
    monkeypatch.setattr(doctor, "LOCK", path)
    (found,) = doctor._packages()
    return found


def test_packages_as_locked_are_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _lock(tmp_path, monkeypatch, f"pytest=={pytest.__version__}", "winonly==1.0 ; sys_platform == 'win32'")
    assert found == Row("packages", "ok", "2 as in the lock")


def test_a_missing_package_is_bad_and_its_cure_installs_just_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _lock(tmp_path, monkeypatch, "not-there-at-all==1.5")
    assert (found.state, found.found) == ("bad", "not-there-at-all 1.5 is missing")
    assert found.cure == f"`{sys.executable} -m pip install --no-deps not-there-at-all==1.5`"


def test_another_version_is_a_warning_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _lock(tmp_path, monkeypatch, "pytest==0.1")
    assert (found.state, found.found) == ("warn", f"pytest {pytest.__version__} instead of 0.1")


def test_many_missing_ones_are_counted_and_the_environment_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _lock(tmp_path, monkeypatch, *(f"missing-{number}==1" for number in range(9)))
    assert found.found == "missing-0 1 is missing, missing-1 1 is missing, missing-2 1 is missing and 6 more"
    assert found.cure == "Delete the folder .venv of the checkout and run `python launch.py`"


def test_the_shipped_lock_is_read_whole() -> None:
    (found,) = doctor._packages()
    pins = doctor.LOCK.read_text(encoding="utf-8").count("\n    # via")
    assert found.state != "ok" or found.found == f"{pins} as in the lock"
    assert pins > 90


# The device


def test_a_gpu_is_named_with_its_memory(torch: Callable[[Answer], None]) -> None:
    torch(_says({"version": "2.13.0", "cuda": [["Card X", 24_000_000_000]], "mps": False}))
    assert doctor._device() == [Row("device", "ok", "CUDA: Card X, 24 GB; torch 2.13.0")]


def test_the_cpu_is_named_with_its_cores_and_units(torch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor : 0\nflags\t: fpu avx2 avx512f avx512_bf16 x\n")
    assert doctor._cpu() == "CPU, 3 cores with AVX2, AVX-512, bf16"


def test_a_driver_that_torch_does_not_use_is_a_warning(torch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    (found,) = doctor._device()
    assert found.state == "warn"
    assert "there is an NVIDIA driver, and torch 2.13.0+cpu does not use it" in found.found


def test_a_torch_that_cannot_be_loaded_is_bad_with_its_last_words(torch: Callable[[Answer], None]) -> None:
    torch(lambda command, **_: subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: libc10.so\n"))
    (found,) = doctor._device()
    assert (found.state, found.found.rpartition("; ")[2]) == ("bad", "torch cannot be loaded: ImportError: libc10.so")


def test_a_torch_that_hangs_is_a_warning(torch: Callable[[Answer], None]) -> None:
    def hang(command: object, *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired("python", timeout)

    torch(hang)
    (found,) = doctor._device()
    assert (found.state, found.cure) == ("warn", "Ask again when the machine is idle")


@pytest.mark.slow
def test_the_real_torch_answers() -> None:
    (found,) = doctor._device()
    assert found.state == "ok"
    assert "torch 2." in found.found


def test_torch_is_not_loaded_into_this_process() -> None:
    code = "import sys, assistant.doctor; assert not {'torch', 'transformers', 'gradio', 'faiss'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The state folder


@pytest.mark.parametrize(("free", "state"), [(0.9e9, "bad"), (4.9e9, "warn"), (5.1e9, "ok")])
def test_little_room_warns_and_none_is_bad(
    home: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free})())
    assert doctor._disk(home)[0].state == state


def test_a_private_writable_folder_is_well(home: Path) -> None:
    assert doctor._folder(home) == [Row("state folder", "ok", str(home))]


def test_a_folder_that_everybody_reads_is_a_warning(home: Path) -> None:
    home.chmod(0o755)
    assert doctor._folder(home)[0] == Row(
        "state folder", "warn", f"{home} can be read by every user of this machine", f"`chmod 700 {home}`"
    )


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.EACCES, "Give it to this user"), (errno.ENOSPC, "Make room on the disk")]
)
def test_a_folder_that_cannot_be_written_to_is_bad(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (found,) = doctor._folder(home)
    assert found.state == "bad"
    assert os.strerror(number) in found.found
    assert found.cure.startswith(cure)


def test_a_file_in_its_place_is_bad(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert doctor._folder(tmp_path / "state")[0] == Row(
        "state folder", "bad", f"{tmp_path / 'state'} is a file", "Name a folder with --home"
    )


# The database


def test_a_sound_database_says_its_version(home: Path) -> None:
    (found,) = doctor._database(home)
    assert found.state == "ok"
    assert found.found.startswith(f"version {schema.SCHEMA}, ")


def test_a_file_that_is_no_database_is_bad(home: Path) -> None:
    (home / "assistant.db").write_bytes(b"something else entirely" * 100)
    rows = examine_only(home)
    assert (row(rows, "database").state, row(rows, "database").found) == (
        "bad",
        "cannot be read: file is not a database",
    )
    assert row(rows, "models").state == "bad"


def examine_only(home: Path) -> list[Row]:
    """The rows of the database and the models."""
    return [*doctor._database(home), *doctor._models(home, settings())]


def test_a_damaged_page_is_found(home: Path) -> None:
    database = Database.at(home)
    database.write(
        lambda connection: connection.execute(
            insert(schema.conversations),
            [{"id": str(n), "owner": "o" * 60, "created": now(), "updated": now()} for n in range(500)],
        )
    )
    database.close()
    path = home / "assistant.db"
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big") or 65536
    for start in range(page * (len(content) // page // 2), len(content), page):
        content[start : start + 64] = b"\xaa" * 64
    path.write_bytes(content)
    found = doctor._database(home)[0]
    assert found.state == "bad"
    assert found.cure == "Stop the program and restore assistant.db from a backup"


@pytest.mark.parametrize(
    ("version", "state", "cure"), [("9999", "bad", "Update the program"), ("0000", "warn", "The next")]
)
def test_a_database_of_another_version_is_told_apart(home: Path, version: str, state: str, cure: str) -> None:
    database = Database.at(home)
    database.write(
        lambda connection: connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    )
    database.close()
    (found,) = doctor._database(home)
    assert found.state == state
    assert found.cure.startswith(cure)


# The models


def test_the_missing_embedder_is_bad_and_other_base_models_a_warning(home: Path) -> None:
    rows = {row.name: row for row in doctor._models(home, settings())}
    embedder = rows["model all-minilm-l6-v2"]
    assert embedder == Row("model all-minilm-l6-v2", "bad", "not in place", "`assistant models pull all-minilm-l6-v2`")
    assert {row.state for row in rows.values() if row != embedder} == {"warn"}


def test_an_embedder_outside_the_catalog_is_asked_for_too(home: Path) -> None:
    rows = doctor._models(home, Settings(knowledge=Knowledge(embedder="my-own")))
    assert row(rows, "model my-own").state == "bad"


def test_a_model_whose_files_are_gone_is_bad(home: Path) -> None:
    card = {"licence": "Apache-2.0", "size": 90_000_000, "parameters": 22_000_000}
    name, version = "all-minilm-l6-v2", "0.1.0"

    def work(connection: Any) -> None:
        known = {"name": name, "version": version, "created": now()}
        connection.execute(insert(schema.models).values(**known, kind="embedder", manifest_digest="0" * 64, card=card))
        connection.execute(insert(schema.promotions).values(**known, author="local"))

    database = Database.at(home)
    database.write(work)
    database.close()
    found = row(doctor._models(home, settings()), f"model {name}")
    assert found.state == "bad"
    assert found.found.startswith("embedder, Apache-2.0, 90 MB; ")
    assert found.cure == f"`assistant models pull {name}`"


# The port


def test_a_free_port_is_well(listener: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    assert doctor._port(settings(free)) == [Row("port", "ok", f"127.0.0.1:{free} is free")]


def test_a_taken_port_names_who_has_it(listener: int) -> None:
    (found,) = doctor._port(settings(listener))
    assert found.state == "bad"
    assert f"is taken by process {os.getpid()} (" in found.found
    assert found.cure == "End it, or choose another with --port"


def test_the_programs_own_server_is_no_trouble(listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.Process.cmdline", lambda _: ["python", "-m", "assistant", "serve"])
    (found,) = doctor._port(settings(listener))
    assert found.state == "ok"
    assert "is this program's own: process" in found.found


def test_an_address_of_another_machine_is_bad() -> None:
    (found,) = doctor._port(settings(7860, host="192.0.2.1"))
    assert (found.state, found.cure) == ("bad", "Set another host or port: `python launch.py --host H --port P`")
