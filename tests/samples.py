"""One event of each kind with every field set: what the log, the page and the docs must be able to take."""

from __future__ import annotations

from assistant.messages import (
    Action,
    Actions,
    Choice,
    Choices,
    Entities,
    Event,
    Failure,
    File,
    Handoff,
    Job,
    Label,
    Labels,
    Progress,
    Source,
    Sources,
    Span,
    Table,
    Text,
)

SAMPLES: dict[type[Event], Event] = {
    type(sample): sample
    for sample in (
        Text("**Thirty days**, 三十天 😀"),
        Entities("Anna from Bern", (Span(0, 4, "person", 0.9), Span(10, 14, "place", 1.0)), model="tagger@3"),
        Labels((Label("refund", 0.75), Label("delivery", 0.25)), model="classifier@1"),
        Sources((Source("return-window", "Returns", "Thirty days.", 0.91, "faq.csv"),), threshold=0.5, sequence=7),
        Table(("name", "count"), (("a", 1), ("b", 2.5), ("c", None), ("d", True)), title="Counts"),
        Choices("Which of the two?", (Choice("The first", "first", "hello"), Choice("The other", "other")), hold=True),
        Actions((Action("promote", "Promote", {"model": "tagger"}, confirm="Really?"),)),
        Job("3f2a"),
        File("report.csv", "text/csv", id="9c1d"),
        Progress("half", 0.5),
        Handoff("asked for a person"),
        Failure("It broke off.", reference="ab12cd34"),
    )
}
