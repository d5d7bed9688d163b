"""The one database: its transactions, and the single writer of this process.

No other module knows which database it is. Writes are queued to one thread that commits them in groups; a write has
returned only when it is on the disk. Every change of knowledge takes the next number of a sequence in its own transaction.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from assistant.errors import UserError
from assistant.failpoints import failpoint
from assistant.schema import FULL_TEXT, SCHEMA

T = TypeVar("T")


def process_name() -> str:
    """This process as a lease names it: host, pid and start time, so that a reused pid is not mistaken for it."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_alive(holder: str) -> bool | None:
    """Whether the process that a lease names still runs; None where it is on another host and cannot be known."""
    host, _, rest = holder.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname():
        return None
    pid, started = int(rest), float(holder.rpartition(":")[2])
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None


class Database:
    """Reads see one snapshot each; writes go through one thread and are durable when they return."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)
        self._queue: queue.SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._writer: threading.Thread | None = None
        self._closed = False

    @classmethod
    def at(cls, home: Path) -> Database:
        """The database of a state folder, made and migrated where needed."""
        database = cls(f"sqlite:///{home / 'assistant.db'}")
        database.migrate()
        return database

    def migrate(self) -> None:
        """Bring the schema to `SCHEMA`; Alembic is imported only when there is something to do."""
        try:
            found = self._version()
        except DBAPIError as error:
            raise _explained(error) from None
        if found == SCHEMA:
            return
        from assistant.migrations import knows, upgrade

        if found and not knows(found):
            raise UserError(
                f"The state folder was written by a newer program: its schema is {found}, this one's is {SCHEMA}. "
                "Start that program, or give another --home."
            )
        upgrade(self._engine)

    def health(self) -> tuple[str, str]:
        """The schema version that is there, and what the file finds wrong with itself; "" where there is none of it."""
        version = self._version()
        with self._engine.connect() as connection:
            verdict = str(connection.scalar(text("PRAGMA quick_check(1)")))
        return version, "" if verdict == "ok" else verdict

    def _version(self) -> str:
        with self._engine.connect() as connection:
            if not connection.dialect.has_table(connection, "alembic_version"):
                return ""
            return str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one snapshot of the database until the block ends."""
        with self._engine.connect() as connection:
            yield connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of the writer thread; returns its result once it is committed.

        `work` may be grouped with others into one transaction, in a savepoint of its own. What it raises is raised here, and
        nothing of it stays. Do no slow work inside: everybody else waits.
        """
        return self.submit(work).result()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """As `write`, without waiting."""
        future: Future[T] = Future()
        with self._start:
            if self._closed:
                raise RuntimeError("the database is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="database-writer", daemon=True)
                self._writer.start()
            self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        with self._start:
            self._closed = True
            writer = self._writer
            self._queue.put(None)
        if writer is not None:
            writer.join()
        self._engine.dispose()

    def _run(self) -> None:
        last = False
        while not last:
            item = self._queue.get()
            batch = []
            while item is not None:
                batch.append(item)
                if len(batch) == 100 or self._queue.empty():
                    break
                item = self._queue.get()
            last = item is None
            batch = [(work, future) for work, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._commit(batch)

    def _commit(self, batch: list[tuple[Callable[[Connection], Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        try:
            with self._engine.connect().execution_options(writes=True) as connection:
                for work, future in batch:
                    if len(batch) == 1:
                        done.append((future, work(connection)))
                        break
                    try:
                        with connection.begin_nested():
                            result = work(connection)
                    except BaseException as error:
                        if not _is_open(connection):
                            raise  # a full disk undoes the whole group, with what others did in it
                        future.set_exception(_explained(error))
                    else:
                        done.append((future, result))
                if connection.in_transaction() and not _is_open(connection):
                    raise UserError(_FULL)
                failpoint("storage.commit")
                connection.commit()
                failpoint("storage.committed")
        except BaseException as error:  # noqa: BLE001 - every waiting caller must hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(_explained(error))
        else:
            for future, result in done:
                future.set_result(result)


def next_sequence(connection: Connection, name: str = "knowledge") -> int:
    """The next change number, taken inside the caller's transaction: it is seen exactly when the change is."""
    statement = text(
        "INSERT INTO sequences (name, value) VALUES (:name, 1) "
        "ON CONFLICT (name) DO UPDATE SET value = sequences.value + 1 RETURNING value"
    )
    return int(connection.execute(statement, {"name": name}).scalar_one())


def current_sequence(connection: Connection, name: str = "knowledge") -> int:
    """The newest change number in this snapshot; 0 before the first change."""
    found = connection.execute(text("SELECT value FROM sequences WHERE name = :name"), {"name": name}).scalar()
    return int(found or 0)


_LIVE = "chunks.collection = :collection AND chunks.enabled AND NOT chunks.deleted"
_BEST_MATCHES = text(
    f"SELECT best.row, best.score, {_LIVE} FROM (SELECT rowid AS row, -bm25({FULL_TEXT}, 2.0, 1.0) AS score "  # noqa: S608 - constants
    f"FROM {FULL_TEXT} WHERE {FULL_TEXT} MATCH :match ORDER BY score DESC LIMIT :wide) AS best "
    "JOIN chunks ON chunks.row = best.row ORDER BY best.score DESC"
)
_ALL_MATCHES = text(
    f"SELECT chunks.row, -bm25({FULL_TEXT}, 2.0, 1.0) AS score, 1 FROM {FULL_TEXT} "  # noqa: S608 - constants
    f"JOIN chunks ON chunks.row = {FULL_TEXT}.rowid WHERE {FULL_TEXT} MATCH :match AND {_LIVE} "
    "ORDER BY score DESC LIMIT :limit"
)


def upsert(connection: Connection, table: Table, row: Mapping[str, Any], *, keys: Sequence[str]) -> None:
    """Insert `row`, or overwrite the row that has the same `keys`."""
    statement = insert(table).values(**row)
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=dict(row)))


def index_texts(connection: Connection, texts: Sequence[tuple[int, str, str]]) -> None:
    """Put the terms of chunks that are new (row, title, body) into the full text, in one go."""
    if texts:
        connection.execute(
            text(f"INSERT INTO {FULL_TEXT} (rowid, title, body) VALUES (:row, :title, :body)"),  # noqa: S608 - a constant
            [{"row": row, "title": title, "body": body} for row, title, body in texts],
        )


def remove_text(connection: Connection, row: int) -> None:
    """Take a chunk's terms out of the full text."""
    connection.execute(text(f"DELETE FROM {FULL_TEXT} WHERE rowid = :row"), {"row": row})  # noqa: S608 - a constant


def search_text(connection: Connection, terms: list[str], collection: str, limit: int) -> list[tuple[int, float]]:
    """(row, BM25 score; higher is better) of the live chunks of `collection` with any of `terms`, best first."""
    if not terms:
        return []
    match = " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)
    given = {"match": match, "collection": collection, "limit": limit, "wide": 4 * limit}
    # The full text is ranked alone first: joining every match to its wide row is most of the time. Where other
    # collections or disabled chunks take up the ranking, all matches are joined after all.
    for statement in (_BEST_MATCHES, _ALL_MATCHES):
        rows = connection.execute(statement, given).all()
        live = [(int(row), float(score)) for row, score, is_live in rows if is_live]
        if len(live) >= limit or len(rows) < 4 * limit:
            break
    return live[:limit]


def now() -> float:
    """Seconds since 1970 for the columns people read; order never depends on it."""
    return time.time()


def _engine(url: str) -> Engine:
    engine = create_engine(url, poolclass=QueuePool, pool_size=16, max_overflow=48, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun by us: the driver would begin them too late
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=30000",
            "secure_delete=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes the lock first: a reader that turns writer half-way would be refused, not made to wait.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


_FULL = "The disk is full: nothing was saved. Make room on it and try again."


def _is_open(connection: Connection) -> bool:
    """Whether the transaction is still there: SQLite undoes all of it by itself where the disk is full.

    See https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction.
    """
    driver: Any = connection.connection.dbapi_connection
    return bool(driver.in_transaction)


def _explained(error: BaseException) -> BaseException:
    """The error as its reader needs it: a full disk and a busy database are things they can act on."""
    if isinstance(error, UserError):
        return error
    reason = ""
    link: BaseException | None = error
    while link is not None:  # an error that undoes a whole group is followed by "no such savepoint"
        reason += f"{link.orig} " if isinstance(link, DBAPIError) else ""
        link = link.__context__
    if "disk is full" in reason or "disk I/O" in reason or (isinstance(error, OSError) and error.errno in (27, 28)):
        return UserError(_FULL)
    if "not a database" in reason or "malformed" in reason:
        return UserError(
            "The database in the state folder is damaged. Put a copy of assistant.db back, or start with another --home."
        )
    if "database is locked" in reason:
        return UserError("Another program holds the database for more than 30 seconds. Stop it and try again.")
    if "readonly database" in reason:
        return UserError("The state folder cannot be written to. Check who owns it and try again.")
    return error
