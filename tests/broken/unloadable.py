"""Deliberately broken: a plugin that asks for a service that does not exist, so it cannot be loaded."""

from collections.abc import Iterable

from assistant import Event, Options, Plugin, Request, Text


class Unloadable(Plugin[Options]):
    name = "unloadable"
    summary = "Asks for a service that nobody offers."

    def __init__(self, weather: object) -> None:
        self.weather = weather

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("never said")
