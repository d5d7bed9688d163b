"""Answers from the knowledge base, with the source; says that it does not know where nothing fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import Field

from assistant import Event, Hit, KnowledgeBase, Options, Plugin, Request, Sources, Text

UNKNOWN = {
    "en": "I don't know: nothing in my sources answers that. You can put it in other words, or write to the support team.",
    "zh": "我不知道：我的资料里没有能回答这个问题的内容。您可以换一种说法，或者联系客服团队。",
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(*-])|(?<=[。！？])|\n+")


class SupportOptions(Options):
    """How an answer is looked up."""

    limit: int = Field(default=3, ge=1, le=10, description="How many sources are shown at most.")
    collection: str = Field(default="", description="The collection to answer from; empty for the default one.")


class Support(Plugin[SupportOptions]):
    """Gives the entry that answers as it is written, or the passage that does."""

    name = "support"
    summary = "Answers questions about the shop from its knowledge base, with sources."
    examples = (
        "How long do I have to return something?",
        "Where is my order?",
        "Which payment methods do you accept?",
        "How much is delivery?",
        "I want my money back",
        "How do I change my password?",
    )
    options_type = SupportOptions

    def __init__(self, knowledge: KnowledgeBase) -> None:
        self.knowledge = knowledge

    def handle(self, request: Request, options: SupportOptions) -> Iterable[Event]:
        found = self.knowledge.search(request.text, collection=options.collection, limit=options.limit)
        fitting = [hit for hit in found.hits if hit.score >= found.threshold]
        shown = tuple(hit.source() for hit in fitting)
        yield Sources(shown, threshold=found.threshold, sequence=found.sequence)
        if not fitting:
            yield Text(UNKNOWN["zh" if request.locale.lower().startswith("zh") else "en"])
            return
        yield from _pieces(fitting[0])


def _pieces(hit: Hit) -> Iterator[Text]:
    """The answer sentence by sentence, so that the reader can start before it is whole; together it is the hit's text."""
    start = 0
    for gap in _SENTENCE.finditer(hit.text):
        yield Text(hit.text[start : gap.end()])
        start = gap.end()
    if start < len(hit.text):
        yield Text(hit.text[start:])
