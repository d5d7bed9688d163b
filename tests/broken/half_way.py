"""Deliberately broken: a plugin that loads, begins to answer, and breaks off. Load it with `[plugins] folders`."""

from collections.abc import Iterable

from assistant import Event, Options, Plugin, Request, Text


class HalfWay(Plugin[Options]):
    name = "half_way"
    summary = "Breaks off in the middle of its answer."
    guessable = False

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("As far as this")
        raise LookupError("the rest is missing")
