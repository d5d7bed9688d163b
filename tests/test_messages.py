"""Events: one log form each, and nothing else gets through."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.messages import (
    EVENTS,
    Action,
    Actions,
    Choices,
    Entities,
    Event,
    Failure,
    File,
    Label,
    Labels,
    Progress,
    Reply,
    Route,
    Source,
    Sources,
    Span,
    Table,
    Text,
    checked,
    from_log,
    to_log,
)

from .samples import SAMPLES


@pytest.mark.parametrize("name", EVENTS)
def test_every_kind_survives_the_log(name: str) -> None:
    event = SAMPLES[EVENTS[name]]
    stored = json.dumps(to_log(event), allow_nan=False)
    form = json.loads(stored)
    assert form["type"] == name
    assert from_log(form) == event


@pytest.mark.parametrize("name", EVENTS)
def test_every_field_of_a_kind_is_in_its_log_form(name: str) -> None:
    kind = EVENTS[name]
    assert set(to_log(SAMPLES[kind])) == {"type"} | {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    "kind", [kind for kind in EVENTS.values() if kind is not Failure], ids=lambda kind: kind.__name__
)
def test_what_a_plugin_may_yield_passes_unchanged(kind: type[Event]) -> None:
    assert checked(SAMPLES[kind]) == SAMPLES[kind]


def test_the_bytes_of_a_file_stay_out_of_the_log() -> None:
    assert to_log(File("a.txt", data=b"secret"))["data"] == ""
    assert checked(File("a.txt", data=b"\xff\x00")) == File("a.txt", data=b"\xff\x00")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Evil:
    """Whatever is asked of it, it raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")

    __hash__ = None  # type: ignore[assignment]


class Faceless:
    """An object that will not say what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class Impostor(Failure):
    """A kind of its own, under no name of the union."""


WRONG: dict[str, tuple[Any, str]] = {
    "a number for a text": (Text(5), "Text: text: .*valid string"),  # type: ignore[arg-type]
    "an evil object for a text": (Text(Evil()), "Text: "),  # type: ignore[arg-type]
    "half of a character": (Text("\ud800"), "Text: .*lone surrogate"),
    "half of a character deep inside": (Labels((Label("\udfff", 0.5),)), "Labels: .*lone surrogate"),
    "no probability": (Labels((Label("a", float("nan")),)), r"Labels: labels\.0\.score"),
    "above one": (Labels((Label("a", 1.1),)), r"labels\.0\.score: .*less than or equal to 1"),
    "below zero": (Sources((Source("a", "b", "c", -0.1),)), r"sources\.0\.score"),
    "an infinite threshold": (Sources((), threshold=float("inf")), "Sources: threshold"),
    "a fraction above one": (Progress("x", 2.0), "Progress: fraction"),
    "a tuple for a span": (Entities("ab", ((0, 1, "x"),)), r"Entities: spans\.0"),  # type: ignore[arg-type]
    "a span behind the text": (Entities("ab", (Span(0, 3, "x"),)), "spans inside the text of 2 characters"),
    "an empty span": (Entities("ab", (Span(1, 1, "x"),)), "spans inside"),
    "a span backwards": (Entities("abc", (Span(2, 1, "x"),)), "spans inside"),
    "a span before the text": (Entities("ab", (Span(-1, 1, "x"),)), r"spans\.0\.start"),
    "a short row": (Table(("a", "b"), (("1", "2"), ("3",))), "expected 2 cells in every row"),
    "NaN in a cell": (Table(("a",), ((float("nan"),),)), r"Table: rows\.0\.0"),
    "infinity in a cell": (Table(("a",), ((float("-inf"),),)), r"Table: rows\.0\.0"),
    "a list in a cell": (Table(("a",), (([1],),)), r"Table: rows\.0\.0"),  # type: ignore[arg-type]
    "a number too long for JSON": (Table(("a",), ((10**5000,),)), "Table: "),
    "nested deeply": (Table(("a",), ((nested(100_000),),)), "Table: "),  # type: ignore[arg-type]
    "nested in itself": (Table(("a",), ((circular(),),)), "Table: "),  # type: ignore[arg-type]
    "a deep argument": (Actions((Action("a", "b", {"x": nested(100_000)}),)), "Actions: "),  # type: ignore[dict-item]
    "text for the bytes of a file": (File("a", data="text"), "data to be bytes, found str"),  # type: ignore[arg-type]
    "a failure": (Failure("x"), "only the host makes a Failure; raise UserError"),
    "a kind of one's own": (Impostor("x"), "expected an event .*found Impostor"),
    "a dictionary": ({"type": "text", "text": "x"}, "expected an event .*found dict"),
    "bytes": (b"x", "expected an event .*found bytes"),
    "a number": (float("nan"), "expected an event .*found float"),
    "nothing": (None, "expected an event .*found NoneType"),
    "a class": (Text, "expected an event .*found type"),
    "an evil object": (Evil(), "expected an event .*found Evil"),
    "a faceless object": (Faceless(), "expected an event .*found Faceless"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_event_is_refused_with_a_reason(what: str) -> None:
    """REL-07: anything at all may come out of a plugin."""
    value, reason = WRONG[what]
    with pytest.raises(ValueError, match=reason):
        checked(value)


@pytest.mark.parametrize(
    "form",
    [
        {"text": "no type"},
        {"type": "nonsense", "text": "x"},
        {"type": "text"},
        {"type": "progress", "text": "x", "fraction": "many"},
    ],
    ids=str,
)
def test_a_log_form_that_fits_no_event_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected an event type|^\w+: "):
        from_log(form)


def test_a_field_of_a_newer_program_is_passed_over() -> None:
    """SCALE-06: the log of the next version can be read by this one."""
    assert from_log({"type": "text", "text": "x", "more": 1}) == Text("x")


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text("a").text = "b"  # type: ignore[misc]


def test_a_subclass_of_str_comes_back_as_str() -> None:
    class Loud(str):
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    event = checked(Text(Loud("x")))
    assert isinstance(event, Text)
    assert type(event.text) is str


def test_a_reply_joins_its_texts_and_its_sources() -> None:
    first, second = Source("a", "A", "x", 0.9), Source("b", "B", "y", 0.8)
    events = (Sources((first,)), Text("one "), Choices("?"), Text("two"), Sources((second,)))
    reply = Reply(conversation="c", turn="t", route=Route("hello", "explicit"), events=events)
    assert reply.text == "one two"
    assert reply.sources == (first, second)


@given(st.text())
def test_any_text_survives_the_log(text: str) -> None:
    assert from_log(json.loads(json.dumps(to_log(Text(text))))) == Text(text)


CELLS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text() | st.floats(allow_nan=False)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=4)))
def test_any_table_survives_the_log_or_is_refused(rows: list[tuple[Any, ...]]) -> None:
    table = Table(tuple("abcd"[: len(rows[0])]), tuple(rows))
    infinite = any(isinstance(cell, float) and abs(cell) == float("inf") for row in rows for cell in row)
    if infinite:
        with pytest.raises(ValueError, match="Table: rows"):
            checked(table)
        return
    found = from_log(json.loads(json.dumps(to_log(table))))
    assert found == table
    assert isinstance(found, Table)
    kinds = [[type(cell) for cell in row] for row in found.rows]
    assert kinds == [[type(cell) for cell in row] for row in rows]
