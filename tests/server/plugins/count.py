"""A slow answer: what is stopped, reloaded and followed in the tests."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from assistant import Event, Options, Plugin, Request, Text


class CountOptions(Options):
    """How far and how fast to count."""

    to: int = Field(default=20, ge=1, le=100_000, description="The last number.")
    pause: float = Field(default=0.1, ge=0, le=10, description="Seconds between two numbers.")


class Count(Plugin[CountOptions]):
    """`/count 40 0.1` counts to 40, a number every 0.1 seconds."""

    name = "count"
    summary = "Counts, slowly."
    guessable = False
    max_concurrency = 64
    options_type = CountOptions

    def handle(self, request: Request, options: CountOptions) -> Iterable[Event]:
        words = request.text.split()
        to = int(words[0]) if words else options.to
        pause = float(words[1]) if words[1:] else options.pause
        for number in range(1, to + 1):
            if request.cancelled.wait(pause):
                return
            yield Text(f"n{number} ")
        yield Text("counted.")
