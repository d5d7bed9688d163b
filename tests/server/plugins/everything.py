"""An answer with every kind of event in it."""

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
    Progress,
    Request,
    Source,
    Sources,
    Span,
    Table,
    Text,
)

SENTENCE = "Anna Berg in Oslo waits for order 4711 since Monday."


class Everything(Plugin[Options]):
    """Shows all there is; `/everything slow` stays at the progress bar until it is stopped."""

    name = "everything"
    summary = "Answers with every kind of event."
    guessable = False

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Progress("Reading the order", 0.4)
        if request.text == "slow":
            request.cancelled.wait(60)
            return
        yield Text(
            "## A heading\n\nA **bold** word, `code`, a [link](https://shop.example/help) and a list:\n\n- one\n- two\n"
        )
        spans = (Span(0, 9, "person", 0.98), Span(13, 17, "place", 0.91), Span(34, 38, "order", 0.87))
        yield Entities(SENTENCE, spans, "tagger@3")
        yield Labels((Label("delivery_delay", 0.83), Label("order_status", 0.12), Label("other", 0.05)), "intents@7")
        yield Table(("Order", "State", "Total"), ((4711, "on its way", 59.9), (4712, "delivered", None)), "Your orders")
        yield Choices(
            "Which order do you mean?", (Choice("Order 4711", "hello from 4711", "hello"), Choice("Another", "x"))
        )
        yield Actions((Action("refund", "Refund the order", {"order": "4711"}, "Refund 59.90?"),))
        yield Job("0123456789abcdef0123456789abcdef")
        yield File("invoice 4711.txt", "text/plain", b"Invoice 4711\nTotal 59.90\n")
        yield Handoff("The parcel is late by more than a week.")
        yield Sources(
            (
                Source("late-parcel", "My parcel is late", "Wait **three** days, then write to us.", 0.81, "faq.csv"),
                Source("policies/delivery#4", "Delivery > Delays", "A parcel is late after five working days.", 0.55),
            ),
            threshold=0.5,
            sequence=1,
        )

    def act(self, action: Action, request: Request) -> Iterable[Event]:
        yield Text(f"Done: {action.name} of {action.arguments['order']}.")
