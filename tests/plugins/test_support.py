"""Answers as written with their source, and an honest "I don't know"."""

from assistant import Sources, Text
from assistant.testing import FakeKnowledge, PluginContract, make_request
from plugins.support import UNKNOWN, Support, SupportOptions

ENTRIES = (
    ("How long may I keep it?", "Thirty days. After that it is yours.\n\nMattresses: sixty days."),
    ("What does delivery cost?", "Delivery costs 5 EUR."),
)


class TestSupport(PluginContract):
    plugin = Support


def answer(question: str, *, locale: str = "en", limit: int = 3) -> tuple[str, Sources]:
    plugin = Support(FakeKnowledge(ENTRIES))
    events = list(plugin.handle(make_request(question, locale=locale), SupportOptions(limit=limit)))
    sources = next(event for event in events if isinstance(event, Sources))
    return "".join(event.text for event in events if isinstance(event, Text)), sources


def test_gives_the_entry_as_it_is_written() -> None:
    text, sources = answer("how long may i keep it")
    assert text == ENTRIES[0][1]
    assert sources.sources[0].passage == ENTRIES[0][1]
    assert sources.sources[0].score == 1.0


def test_streams_sentence_by_sentence() -> None:
    plugin = Support(FakeKnowledge(ENTRIES))
    events = list(plugin.handle(make_request("how long may i keep it"), SupportOptions()))
    assert [event.text for event in events if isinstance(event, Text)] == [
        "Thirty days. ",
        "After that it is yours.\n\n",
        "Mattresses: sixty days.",
    ]


def test_says_that_it_does_not_know() -> None:
    text, sources = answer("is the moon made of cheese")
    assert text == UNKNOWN["en"]
    assert sources.sources == ()
    assert sources.threshold == 0.5


def test_says_so_in_the_readers_language() -> None:
    assert answer("完全不同", locale="zh-CN")[0] == UNKNOWN["zh"]


def test_names_only_sources_that_reach_the_threshold() -> None:
    _, sources = answer("delivery costs")
    assert [source.title for source in sources.sources] == ["What does delivery cost?"]
