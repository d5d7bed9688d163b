"""An answer that puts what was said to it into every text of every event: paths, mark-up, scripts."""

from __future__ import annotations

from collections.abc import Iterable

from assistant import (
    Action,
    Actions,
    Choice,
    Choices,
    Entities,
    Event,
    File,
    Handoff,
    Job,
    Label,
    Labels,
    Options,
    Plugin,
    Request,
    Source,
    Sources,
    Span,
    Table,
    Text,
)


class Hostile(Plugin[Options]):
    """`/hostile TEXT` is what a plugin does that trusts its input."""

    name = "hostile"
    summary = "Repeats everything everywhere."
    guessable = False

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        text = request.text
        yield Text(f"{text}\n\n{text}")
        yield Entities(text, (Span(0, len(text), text, 0.5),), text)
        yield Labels((Label(text, 0.5),), text)
        yield Table((text,), ((text,),), text)
        yield Choices(text, (Choice(text, text, text),))
        yield Actions((Action(text, text, {}, text),))
        yield Job(text)
        yield File(text, text, text.encode())
        yield Handoff(text)
        yield Sources((Source(text, text, text, 0.5, text),), threshold=0.1)
