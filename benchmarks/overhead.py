"""PERF-05: what the program itself costs for a message, in CPU milliseconds, beside two commits written by hand.

    python -m benchmarks.overhead [--quick]

A plugin that answers at once, through routing, threads, validation and the log; models and page are left out. The peer
commits the same two rows with the driver alone: what durability costs here. Rounds alternate; medians are shown.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from assistant import Event, Options, Plugin, Request, Text
from assistant.app import Assistant
from assistant.identity import LOCAL
from assistant.messages import Incoming
from assistant.settings import PluginsSection, Settings
from benchmarks.results import record


class AtOnce(Plugin[Options]):
    """Answers without doing anything."""

    name = "at_once"
    summary = "Answers at once."

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        """One event."""
        yield Text("ok")


def by_hand(folder: Path) -> Callable[[], None]:
    """Two durable commits of a message and its answer."""
    connection = sqlite3.connect(folder / "peer.db", isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE m (id INTEGER PRIMARY KEY, b)"
    )

    def turn() -> None:
        for body in ({"role": "user", "text": "hi"}, {"role": "assistant", "text": "ok"}):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO m (b) VALUES (?)", (json.dumps(body),))
            connection.execute("COMMIT")

    return turn


def measure(turn: Callable[[], object], count: int) -> float:
    """CPU milliseconds of this process for a turn."""
    started = time.process_time()
    for _ in range(count):
        turn()
    return (time.process_time() - started) / count * 1000


def main() -> None:
    """Measure and record."""
    rounds, count = (3, 100) if "--quick" in sys.argv else (9, 300)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(plugins=PluginsSection(fallback="at_once", disabled=("hello", "support")))
        assistant = Assistant(folder / "home", settings, plugins=[AtOnce])
        incoming = Incoming(text="hi", identity=LOCAL, plugin="at_once")
        peer = by_hand(folder)
        measure(lambda: assistant.ask(incoming), 50)
        pairs = [(measure(lambda: assistant.ask(incoming), count), measure(peer, count)) for _ in range(rounds)]
        assistant.close()
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    rows = [
        ["whole path, CPU ms a message", f"{ours:.2f}", "<= 2.00"],
        ["two commits by hand, CPU ms", f"{theirs:.2f}", ""],
        ["routing, threads, checks: the difference", f"{ours - theirs:.2f}", ""],
    ]
    record("overhead (PERF-05)", ["what", "median", "target"], rows)


if __name__ == "__main__":
    main()
