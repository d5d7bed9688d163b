"""One database: what was said to be written is there, in one piece, whoever writes beside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, insert, select, text

from assistant import failpoints
from assistant.errors import UserError
from assistant.schema import FULL_TEXT, SCHEMA, metadata, sequences
from assistant.storage import Database, current_sequence, is_alive, next_sequence, process_name, upsert


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path)
    yield database
    database.close()


def put(connection: Connection, name: str, value: int = 1) -> str:
    connection.execute(insert(sequences).values(name=name, value=value))
    return name


def names(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(select(sequences.c.name)))


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A program of its own, which finds its arguments in `sys.argv`."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Group:
    """Holds the writer, so that what is queued meanwhile is one group."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._go = threading.Event()

    def __enter__(self) -> Group:
        busy = threading.Event()

        def hold(_: Connection) -> None:
            busy.set()
            self._go.wait(10)

        self.database.submit(hold)
        assert busy.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()

    def submit(self, work: Any) -> Future[Any]:
        return self.database.submit(work)


def commits(database: Database) -> list[Connection]:
    """A list that grows by one with every commit."""
    counted: list[Connection] = []
    event.listen(database._engine, "commit", counted.append)
    return counted


# Writing


def test_a_write_gives_its_result_and_is_there(database: Database) -> None:
    assert database.write(lambda c: put(c, "a")) == "a"
    assert names(database) == {"a"}


def test_a_write_that_does_nothing_is_one(database: Database) -> None:
    assert database.write(lambda _: 7) == 7


def test_a_write_has_returned_only_when_it_is_on_the_disk(tmp_path: Path) -> None:
    """REL-01: killed right after it, the row is there."""
    child = run(
        """
        import os, signal, sys
        from pathlib import Path
        from sqlalchemy import text
        from assistant.storage import Database
        database = Database.at(Path(sys.argv[1]))
        database.write(lambda c: c.execute(text("INSERT INTO sequences VALUES ('a', 1)")))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert child.communicate(timeout=60) == ("", "")
    assert child.returncode == -9
    database = Database.at(tmp_path)
    assert names(database) == {"a"}
    database.close()


def test_every_commit_reaches_the_disk_and_not_just_the_system(database: Database) -> None:
    with database.read() as connection:
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_what_raises_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        put(connection, "a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(work)
    assert names(database) == set()


def test_writes_that_wait_are_committed_together(database: Database) -> None:
    """PERF-09: a hundred writers share one trip to the disk."""
    counted = commits(database)
    with Group(database) as group:
        waiting = [group.submit(lambda c, n=n: put(c, f"{n}")) for n in range(50)]
    assert [future.result(10) for future in waiting] == [str(n) for n in range(50)]
    assert len(counted) == 1
    assert len(names(database)) == 50


def test_one_that_fails_in_a_group_harms_no_other(database: Database) -> None:
    with Group(database) as group:
        first = group.submit(lambda c: put(c, "first"))
        second = group.submit(lambda c: [put(c, "second"), put(c, "first")])
        third = group.submit(lambda c: put(c, "third"))
    assert first.result(10) == "first"
    assert third.result(10) == "third"
    with pytest.raises(Exception, match="UNIQUE"):
        second.result(10)
    assert names(database) == {"first", "third"}


def test_one_that_exits_in_a_group_harms_no_other(database: Database) -> None:
    def leave(_: Connection) -> None:
        raise SystemExit(3)

    with Group(database) as group:
        left = group.submit(leave)
        other = group.submit(lambda c: put(c, "other"))
    with pytest.raises(SystemExit):
        left.result(10)
    assert other.result(10) == "other"


def test_one_that_nobody_waits_for_any_more_is_left_out(database: Database) -> None:
    with Group(database) as group:
        cancelled = group.submit(lambda c: put(c, "cancelled"))
        assert cancelled.cancel()
    database.write(lambda c: put(c, "after"))
    assert names(database) == {"after"}


def test_a_closed_database_takes_no_more_but_finishes_what_it_took(tmp_path: Path) -> None:
    database = Database.at(tmp_path)
    with Group(database) as group:
        last = group.submit(lambda c: put(c, "last"))
    database.close()
    assert last.result(0) == "last"
    with pytest.raises(RuntimeError, match="the database is closed"):
        database.write(lambda c: put(c, "late"))
    database.close()


def test_upsert_overwrites_the_row_of_the_same_keys(database: Database) -> None:
    for value in (1, 2):
        row = {"name": "a", "value": value}
        database.write(lambda c: upsert(c, sequences, row, keys=("name",)))  # noqa: B023 - called at once
    with database.read() as connection:
        assert connection.execute(select(sequences)).all() == [("a", 2)]


# Reading


def test_a_read_sees_one_snapshot(database: Database) -> None:
    with database.read() as connection:
        before = connection.scalars(select(sequences.c.name)).all()
        database.write(lambda c: put(c, "meanwhile"))
        assert connection.scalars(select(sequences.c.name)).all() == before
    assert names(database) == {"meanwhile"}


def test_a_long_reader_holds_no_writer_up(database: Database) -> None:
    with database.read() as connection:
        connection.scalars(select(sequences.c.name)).all()
        started = time.monotonic()
        database.write(lambda c: put(c, "meanwhile"))
        assert time.monotonic() - started < 5


def test_change_numbers_rise_and_come_with_their_change(database: Database) -> None:
    assert [database.write(next_sequence) for _ in range(3)] == [1, 2, 3]

    def broken(connection: Connection) -> None:
        next_sequence(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(broken)
    with database.read() as connection:
        assert current_sequence(connection) == 3
        assert current_sequence(connection, "unheard of") == 0


# A full disk, a held database


def test_a_failing_disk_is_said_in_one_sentence(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-06."""
    monkeypatch.setattr(failpoints, "_armed", "storage.commit:raise")
    with pytest.raises(UserError, match=r"The disk is full: nothing was saved\. Make room on it and try again\."):
        database.write(lambda c: put(c, "a"))
    monkeypatch.setattr(failpoints, "_armed", "")
    assert names(database) == set()
    database.write(lambda c: put(c, "a"))
    assert names(database) == {"a"}


def test_a_full_disk_acknowledges_nothing_that_it_lost(tmp_path: Path) -> None:
    """REL-06: SQLite undoes a whole group by itself, also the part of it that had succeeded."""
    child = run(
        """
        import resource, sys, threading
        from pathlib import Path
        from sqlalchemy import text
        from assistant.errors import UserError
        from assistant.storage import Database

        database = Database.at(Path(sys.argv[1]))
        busy, go = threading.Event(), threading.Event()
        database.submit(lambda c: (busy.set(), go.wait()))
        busy.wait()
        small = "INSERT INTO sequences VALUES (:name, 1)"
        large = "INSERT INTO files (id, owner, name, media_type, digest, size, data, created) " \
                "VALUES (:id, '', '', '', '', 0, zeroblob(4000), 0)"
        waiting = [
            database.submit(lambda c: c.execute(text(small), {"name": "before"})),
            database.submit(lambda c: c.execute(text(large), [{"id": str(n)} for n in range(2000)])),
            database.submit(lambda c: c.execute(text(small), {"name": "behind"})),
        ]
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        go.set()
        for future in waiting:
            error = future.exception()
            assert isinstance(error, UserError) and "The disk is full" in str(error), error
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        database.write(lambda c: c.execute(text(small), {"name": "room again"}))
        with database.read() as connection:
            print(connection.scalars(text("SELECT name FROM sequences")).all(), database.health()[1])
        """,
        tmp_path,
    )
    output, errors = child.communicate(timeout=60)
    assert (output, errors, child.returncode) == ("['room again'] \n", "", 0)


def test_a_database_that_another_program_holds_is_said_in_one_sentence(tmp_path: Path) -> None:
    first, second = Database.at(tmp_path), Database.at(tmp_path)

    @event.listens_for(second._engine, "checkout")
    def impatient(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA busy_timeout=50")

    with first._engine.connect().execution_options(writes=True) as holding:
        holding.execute(text("SELECT 1"))
        with pytest.raises(UserError, match=r"Another program holds the database .* Stop it and try again"):
            second.write(lambda c: put(c, "b"))
    second.write(lambda c: put(c, "b"))
    first.close()
    second.close()


def test_a_damaged_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "assistant.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"The database in the state folder is damaged\. Put a copy"):
        Database.at(tmp_path)


# Several processes


def test_two_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    Database.at(tmp_path).close()
    code = """
        import sys
        from pathlib import Path
        from sqlalchemy import text
        from assistant.storage import Database, next_sequence
        database = Database.at(Path(sys.argv[1]))
        for n in range(100):
            row = {"name": f"{sys.argv[2]}-{n}"}
            database.write(lambda c: (next_sequence(c), c.execute(text("INSERT INTO sequences VALUES (:name, 1)"), row)))
        database.close()
        """
    children = [run(code, tmp_path, name) for name in ("a", "b")]
    assert [child.communicate(timeout=60) for child in children] == [("", "")] * 2
    database = Database.at(tmp_path)
    assert names(database) == {"knowledge"} | {f"{name}-{n}" for name in ("a", "b") for n in range(100)}
    with database.read() as connection:
        assert current_sequence(connection) == 200
    database.close()


def test_a_lease_of_this_process_is_alive() -> None:
    assert is_alive(process_name()) is True


def test_a_lease_of_a_process_that_ended_is_dead() -> None:
    child = run("from assistant.storage import process_name; print(process_name(), flush=True); input()")
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    # Neither its pipe nor its parent need to have noticed: a process that waits to be reaped makes no answer any more.
    assert is_alive(name) is True
    child.kill()
    for _ in range(500):
        if psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    assert is_alive(name) is False
    child.communicate()
    assert is_alive(name) is False


def test_a_lease_under_a_reused_process_number_is_dead() -> None:
    name, _, started = process_name().rpartition(":")
    assert is_alive(f"{name}:{float(started) - 100:.2f}") is False


def test_a_lease_of_another_machine_is_unknown() -> None:
    _, pid, started = process_name().rsplit(":", 2)
    assert is_alive(f"elsewhere:{pid}:{started}") is None


# Migrations


def test_a_new_database_is_what_the_schema_says(database: Database) -> None:
    def ours(_: Any, name: str | None, kind: str, *__: Any) -> bool:
        return not (kind == "table" and str(name).startswith(FULL_TEXT))

    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
        assert compare_metadata(context, metadata) == []
        tables = set(connection.scalars(text("SELECT name FROM sqlite_master")))
    assert FULL_TEXT in tables
    assert database.health() == (SCHEMA, "")


def test_a_second_start_migrates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.at(tmp_path).close()
    monkeypatch.setattr("assistant.migrations.upgrade", pytest.fail)
    Database.at(tmp_path).close()


def test_processes_that_migrate_at_once_make_one_database(tmp_path: Path) -> None:
    """REL-12: whoever comes second finds it done."""
    code = """
        import sys
        from pathlib import Path
        import assistant.migrations
        from assistant.storage import Database
        print("ready", flush=True)
        input()
        print(Database.at(Path(sys.argv[1])).health())
        """
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    assert [child.communicate(timeout=60) for child in children] == [(f"{(SCHEMA, '')}\n", "")] * 3


def test_a_migration_that_is_broken_off_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REL-12."""
    with monkeypatch.context() as patched:

        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        patched.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", broken)
        with pytest.raises(ZeroDivisionError):
            Database.at(tmp_path)
    database = Database.at(tmp_path)
    assert database.health() == (SCHEMA, "")
    database.close()


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    database = Database.at(tmp_path)
    database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    expected = rf"written by a newer program: its schema is 9999, this one's is {SCHEMA}\. Start that program, or give"
    with pytest.raises(UserError, match=expected):
        Database.at(tmp_path)
