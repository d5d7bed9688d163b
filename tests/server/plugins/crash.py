"""An answer that breaks off half-way."""

from __future__ import annotations

from collections.abc import Iterable

from assistant import Event, Options, Plugin, Request, Text

SECRET = "the-secret-of-the-traceback"


class Crash(Plugin[Options]):
    """Says something, then raises."""

    name = "crash"
    summary = "Fails half-way."
    guessable = False

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("The first half of the answer.")
        raise RuntimeError(SECRET)
