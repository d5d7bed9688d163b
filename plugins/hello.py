"""The smallest plugin: a name, a summary, and one method."""

from collections.abc import Iterable

from assistant import Event, Options, Plugin, Request, Text


class Hello(Plugin[Options]):
    name = "hello"
    summary = "Says hello."
    examples = ("hello", "hi there", "good morning")

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("Hello! Ask me about an order, a delivery or a return.")
