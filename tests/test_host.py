"""Turns from the question to the log, with plugins that do everything a plugin should not."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from sqlalchemy import Engine, event

from assistant import (
    Action,
    Actions,
    Choices,
    Event,
    Handoff,
    Identity,
    Label,
    Labels,
    Options,
    Plugin,
    Progress,
    Reply,
    Request,
    Role,
    Route,
    Source,
    Sources,
    Text,
    UserError,
)
from assistant.chatlog import Entry, Log
from assistant.errors import Forbidden
from assistant.identity import ABSENT
from assistant.messages import Failure, File, Incoming
from assistant.settings import PluginsSection, Server, Settings, Turn
from assistant.storage import Database
from assistant.testing import Chat
from assistant.turns import CUT, Snapshot

Chats = Callable[..., Chat]
STRANGER = Identity("v-stranger")


def scripted(answer: Callable[[Request, Any], Any], name: str = "scripted", **members: Any) -> type[Plugin[Any]]:
    """A plugin that does what the test says."""

    def handle(self: Plugin[Any], request: Request, options: Any) -> Any:
        return answer(request, options)

    return type("Scripted", (Plugin,), {"name": name, "summary": "For a test.", "handle": handle} | members)


class Fine(Plugin[Options]):
    name = "fine"
    summary = "Is fine whatever happens to others."

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("fine")


def settings(*, fallback: str = "scripted", seconds: float = 60, **server: Any) -> Settings:
    return Settings(
        plugins=PluginsSection(fallback=fallback, disabled=("hello", "support")),
        turn=Turn(timeout_seconds=seconds, max_output_bytes=4096),
        server=Server(**server),
    )


def submit(chat: Chat, text: str = "question", **more: Any) -> str:
    """Begin a turn in the chat's conversation; gives the id of its answer."""
    incoming = Incoming(text=text, identity=chat.identity, conversation=chat.conversation, **more)
    begun = chat.assistant.submit(incoming)
    chat.conversation = begun.conversation
    return begun.answer


def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def look(chat: Chat, turn: str) -> Snapshot:
    return chat.assistant.look(chat.identity, turn)[1]


def logged(chat: Chat, turn: str) -> Entry:
    return chat.assistant.log.entry(turn)[1]


def failure(reply: Reply | Snapshot | Entry) -> Failure:
    assert reply.state == "failed"
    last = reply.events[-1]
    assert isinstance(last, Failure)
    return last


class Gates:
    """A plugin that says "first", waits to be let go, and says "second"."""

    def __init__(self, *, heeds: bool = True) -> None:
        self.heeds, self.go, self.inside, self.left = heeds, threading.Event(), threading.Event(), threading.Event()

    def plugin(self, name: str = "scripted", **members: Any) -> type[Plugin[Any]]:
        return scripted(self.answer, name, **members)

    def answer(self, request: Request, _: Any) -> Iterator[Event]:
        try:
            yield Text("first ")
            self.inside.set()
            while not self.go.wait(0.005):
                if self.heeds and request.cancelled.is_set():
                    return
            yield Text("second")
        finally:
            self.left.set()


@pytest.fixture
def gates() -> Iterator[Gates]:
    made = Gates()
    yield made
    made.go.set()


@pytest.fixture
def stubborn() -> Iterator[Gates]:
    """As `gates`, but it does not care whether anybody waits."""
    made = Gates(heeds=False)
    yield made
    made.go.set()


# An answer


def test_an_answer_is_what_the_plugin_yields_and_so_it_is_logged(chat: Chats) -> None:
    sources = Sources((Source("a", "A", "p", 0.9),), threshold=0.5, sequence=7)
    given = (sources, Text("one "), Text("two"), Labels((Label("x", 0.5),)), Handoff("why"))
    chatting = chat(scripted(lambda *_: iter(given)))
    reply = chatting.ask("question")
    assert reply.events == (sources, Text("one two"), *given[3:])
    assert (reply.state, reply.route.plugin, reply.route.reason) == ("done", "scripted", "fallback")
    entry = logged(chatting, reply.turn)
    assert (entry.events, entry.state, entry.route) == (reply.events, "done", reply.route)
    assert entry.knowledge_sequence == 7
    assert 0 <= entry.timings["first_event_ms"] <= entry.timings["total_ms"] < 60_000


def test_a_list_is_an_answer_too(chat: Chats) -> None:
    assert chat(scripted(lambda *_: [Text("a"), Text("b")])).ask("x").text == "ab"


def test_the_plugin_gets_the_request_as_it_stands(chat: Chats) -> None:
    seen: list[Request] = []

    def answer(request: Request, _: Options) -> Iterable[Event]:
        seen.append(request)
        return [Text("answer")]

    chatting = chat(scripted(answer), settings=settings(seconds=30))
    before = time.monotonic()
    chatting.ask("first")
    reply = chatting.ask("/scripted  second\u202e", plugin="")
    assert [(m.role, m.text) for m in seen[1].history] == [("user", "first"), ("assistant", "answer")]
    assert (seen[1].text, seen[1].id, seen[1].conversation) == ("second", reply.turn, reply.conversation)
    assert seen[1].identity == chatting.identity
    assert before + 29 < seen[1].deadline < time.monotonic() + 30
    assert not seen[1].cancelled.is_set()


def test_the_pieces_of_a_stream_join_to_the_text(chat: Chats) -> None:
    def answer(*_: Any) -> Iterator[Event]:
        yield Progress("reading", 0.5)
        for word in ("one ", "two ", "three"):
            time.sleep(0.05)
            yield Text(word)
        yield Labels((Label("x", 1.0),))

    chatting = chat(scripted(answer))
    events = list(chatting.assistant.stream(Incoming(text="x", identity=chatting.identity)))
    assert "".join(event.text for event in events if isinstance(event, Text)) == "one two three"
    assert len([event for event in events if isinstance(event, Text)]) > 1, "it came piece by piece"
    assert events[-1] == Labels((Label("x", 1.0),))


def test_a_short_turn_costs_two_commits(chat: Chats) -> None:
    """PERF-05: the question before the plugin runs, the answer with everything behind it."""
    chatting = chat(scripted(lambda request, _: [request.state.update(n=1), Text("a")][1:]))
    chatting.ask("warm")
    counted: list[Any] = []
    engine: Engine = chatting.assistant.database._engine
    event.listen(engine, "commit", counted.append)
    chatting.ask("question")
    assert len(counted) == 2


def test_what_ask_gives_back_is_on_the_disk(chat: Chats) -> None:
    """REL-01: whoever has read the end can ask on at once."""
    chatting = chat(Fine)
    for _ in range(30):
        reply = chatting.ask("x")
        assert logged(chatting, reply.turn).state == "done"


# Plugins that break


def generator(*things: Any) -> Callable[..., Iterator[Any]]:
    def answer(*_: Any) -> Iterator[Any]:
        yield Text("so far")
        for thing in things:
            if isinstance(thing, BaseException):
                raise thing
            yield thing

    return answer


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Clinging:
    """An answer that will not be closed."""

    def __iter__(self) -> Iterator[Event]:
        return iter([Text("so far")])

    def close(self) -> None:
        raise OSError("no")


def clinging(*_: Any) -> Iterator[Event]:
    try:
        yield Text("so far")
        yield 5  # type: ignore[misc]
    finally:
        yield Text("and on")


BREAKS: dict[str, Callable[..., Any]] = {
    "raises": generator(LookupError("gone")),
    "exits": generator(SystemExit(3)),
    "interrupts": generator(KeyboardInterrupt()),
    "raises what has no words": generator(Unspeakable()),
    "runs out of stack": generator(RecursionError()),
    "runs out of memory": generator(MemoryError()),
    "yields nothing": generator(None),
    "yields bytes": generator(b"x"),
    "yields a text": generator("x"),
    "yields a dictionary": generator({"type": "text", "text": "x"}),
    "yields NaN": generator(Labels((Label("x", float("nan")),))),
    "yields a failure": generator(Failure("mine")),
    "yields half of a character": generator(Text("\ud800")),
    "yields an object": generator(object()),
    "does not want to end": clinging,
    "cannot be closed": lambda *_: Clinging(),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_was_streamed_stays_and_a_reference_finds_the_rest(
    what: str, chat: Chats, caplog: pytest.LogCaptureFixture
) -> None:
    """REL-07: one failed turn, and the next one is answered."""
    chatting = chat(scripted(BREAKS[what]), Fine)
    reply = chatting.ask("x")
    assert reply.text == "so far"
    shown = failure(reply)
    assert shown.message == "Something went wrong with this answer."
    assert len(shown.reference) == 8
    assert logged(chatting, reply.turn).events == reply.events
    (record,) = [record for record in caplog.records if shown.reference in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.exc_info, "the traceback stands under the reference"
    assert chatting.ask("y", plugin="fine").text == "fine"


NO_ANSWERS: dict[str, Callable[..., Any]] = {
    "raises before": lambda *_: 1 / 0,
    "gives nothing": lambda *_: None,
    "gives a text": lambda *_: "text",
    "gives bytes": lambda *_: b"bytes",
    "gives a number": lambda *_: float("nan"),
    "gives one event": lambda *_: Text("x"),
    "gives a dictionary": lambda *_: {"text": "x"},
    "gives deep lists": lambda *_: json.loads("[" * 500 + "]" * 500),
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_what_is_no_answer_fails_its_turn_alone(what: str, chat: Chats) -> None:
    """REL-07."""
    chatting = chat(scripted(NO_ANSWERS[what]), Fine)
    reply = chatting.ask("x")
    assert reply.events == (failure(reply),)
    assert failure(reply).reference
    assert chatting.ask("y", plugin="fine").text == "fine"


def test_a_traceback_names_the_line_and_never_the_message(chat: Chats, caplog: pytest.LogCaptureFixture) -> None:
    chatting = chat(scripted(generator(LookupError("the rest is missing"))))
    chatting.ask("a private question")
    assert "LookupError: the rest is missing" in caplog.text
    assert "test_host.py" in caplog.text
    assert "a private question" not in caplog.text


def test_a_sentence_for_the_reader_is_shown_as_it_is(chat: Chats, caplog: pytest.LogCaptureFixture) -> None:
    reply = chat(scripted(generator(UserError("Type your order number.")))).ask("x")
    assert reply.events == (Text("so far"), Failure("Type your order number."))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_answer_of_nothing_is_an_empty_answer(chat: Chats) -> None:
    reply = chat(scripted(lambda *_: [])).ask("x")
    assert (reply.state, reply.events) == ("done", ())


def test_a_plugin_that_cannot_be_opened_is_tried_again(chat: Chats) -> None:
    attempts: list[int] = []

    def opens(self: Plugin[Any]) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("not yet")

    chatting = chat(scripted(lambda *_: [Text("open")], open=opens))
    assert failure(chatting.ask("x")).reference
    assert chatting.ask("y").text == "open"
    assert chatting.ask("z").text == "open"
    assert len(attempts) == 2


def test_a_plugin_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path: Path) -> None:
    closed: list[str] = []

    def breaks(self: Plugin[Any]) -> None:
        raise OSError("no")

    plugins = (
        scripted(lambda *_: [Text("a")], "one", close=breaks),
        scripted(lambda *_: [Text("b")], "two", close=lambda self: closed.append("two")),
    )
    chatting = Chat(tmp_path, plugins, settings(fallback="one"))
    chatting.ask("x", plugin="one")
    chatting.ask("x", plugin="two")
    chatting.assistant.close()
    assert closed == ["two"]


# Plugins that do not end


def test_a_plugin_that_hangs_is_broken_off_at_the_deadline(chat: Chats, gates: Gates) -> None:
    """REL-07: the reader waits no longer than the deadline and a second."""
    chatting = chat(gates.plugin(), Fine, settings=settings(seconds=0.5))
    started = time.monotonic()
    reply = chatting.ask("x")
    assert time.monotonic() - started < 1.5
    assert reply.text == "first "
    assert failure(reply).message == "The answer took longer than 0.5 seconds and was broken off."
    assert gates.left.wait(1), "the plugin was told"
    assert chatting.ask("y", plugin="fine").text == "fine"


def test_stop_ends_it_at_once_and_keeps_what_was_streamed(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    assert gates.inside.wait(5)
    started = time.monotonic()
    assert chatting.assistant.stop(chatting.identity, turn)
    assert time.monotonic() - started < 1
    for seen in (look(chatting, turn), logged(chatting, turn)):
        assert (seen.state, seen.events) == ("stopped", (Text("first "),))
    assert gates.left.wait(1)
    assert not chatting.assistant.stop(chatting.identity, turn), "it is over already"


def test_stop_ends_a_plugin_that_never_yields(chat: Chats) -> None:
    release = threading.Event()
    chatting = chat(scripted(lambda *_: [release.wait(30)]))
    turn = submit(chatting)
    started = time.monotonic()
    chatting.assistant.stop(chatting.identity, turn)
    assert look(chatting, turn).state == "stopped"
    assert time.monotonic() - started < 1
    release.set()


def test_what_comes_after_stop_is_not_taken(chat: Chats, stubborn: Gates) -> None:
    chatting = chat(stubborn.plugin())
    turn = submit(chatting)
    assert stubborn.inside.wait(5)
    chatting.assistant.stop(chatting.identity, turn)
    stubborn.go.set()
    assert stubborn.left.wait(5), "the generator was closed"
    assert logged(chatting, turn).text == "first "


def test_a_plugin_that_ignores_stop_twice_is_suspended_until_it_ends(chat: Chats, stubborn: Gates) -> None:
    """REL-07."""
    chatting = chat(stubborn.plugin(), Fine)
    for number in (1, 2):
        turn = submit(chatting)
        assert stubborn.inside.wait(5)
        stubborn.inside.clear()
        chatting.assistant.stop(chatting.identity, turn)
        gate = chatting.assistant._host._gates["scripted"]
        until(lambda: len(gate._stuck) == number)  # noqa: B023 - called at once
    refused = failure(chatting.ask("x"))
    assert refused.message.startswith("The plugin scripted is suspended: 2 of its answers did not stop when told to.")
    assert chatting.ask("y", plugin="fine").text == "fine"
    stubborn.go.set()
    until(lambda: not gate._stuck)
    assert chatting.ask("z").text == "first second"


def test_an_endless_answer_is_cut_with_a_notice(chat: Chats) -> None:
    """REL-07."""
    ended = threading.Event()

    def answer(*_: Any) -> Iterator[Event]:
        try:
            while True:
                yield Text("on and on ")
        finally:
            ended.set()

    chatting = chat(scripted(answer), settings=settings())
    reply = chatting.ask("x")
    assert reply.state == "done"
    assert reply.text.endswith(CUT)
    assert len(reply.text) == 4096 + len(CUT)
    assert ended.wait(1)
    assert logged(chatting, reply.turn).text == reply.text


def test_one_giant_event_is_cut_as_well(chat: Chats) -> None:
    reply = chat(scripted(lambda *_: [Text("x" * 50_000_000)]), settings=settings()).ask("x")
    assert (len(reply.text), reply.state) == (4096 + len(CUT), "done")


def test_closing_the_program_marks_what_was_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-12: a clean end leaves no answer that looks as if it were still being made."""
    monkeypatch.setattr("assistant.host.CLOSING_SECONDS", 0.2)
    held = Gates(heeds=False)
    chatting = Chat(tmp_path, (held.plugin(),), settings())
    turn = submit(chatting)
    assert held.inside.wait(5)
    chatting.assistant.close()
    database = Database.at(tmp_path)
    _, entry = Log(database).entry(turn)
    assert entry.events == (Text("first "), Failure("The program was closed while it answered. Ask again."))
    assert entry.state == "failed"
    database.close()
    held.go.set()


def test_closing_lets_an_answer_end_that_soon_does(tmp_path: Path, gates: Gates) -> None:
    chatting = Chat(tmp_path, (gates.plugin(),), settings())
    turn = submit(chatting)
    assert gates.inside.wait(5)
    threading.Timer(0.1, gates.go.set).start()
    chatting.assistant.close()
    database = Database.at(tmp_path)
    assert Log(database).entry(turn)[1].text == "first second"
    database.close()


def test_nobody_is_let_in_while_it_closes(tmp_path: Path) -> None:
    chatting = Chat(tmp_path, (Fine,), settings(fallback="fine"))
    chatting.assistant.finish()
    with pytest.raises(UserError, match=r"The program is closing\. Ask again in a minute\."):
        chatting.ask("x")
    chatting.assistant.close()


# Many at once


def test_two_requests_are_answered_side_by_side(chat: Chats) -> None:
    meet = threading.Barrier(2)

    def answer(request: Request, _: Options) -> Iterator[Event]:
        meet.wait(5)
        yield Text(request.text)
        meet.wait(5)
        yield Text(" again")

    chatting = chat(scripted(answer))
    turns = []
    for name in ("one", "two"):
        chatting.conversation = ""
        turns.append(submit(chatting, name))
    until(lambda: all(look(chatting, turn).over for turn in turns))
    assert [logged(chatting, turn).text for turn in turns] == ["one again", "two again"]


def test_no_more_answers_are_made_at_a_time_than_the_plugin_takes(chat: Chats, gates: Gates) -> None:
    lock = threading.Lock()
    inside = most = 0

    def answer(*_: Any) -> Iterator[Event]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gates.go.wait(30)
        with lock:
            inside -= 1
        yield Text("done")

    chatting = chat(scripted(answer, max_concurrency=2))
    turns = []
    for _ in range(4):
        chatting.conversation = ""
        turns.append(submit(chatting))
    until(lambda: inside == 2)
    time.sleep(0.1)
    gates.go.set()
    until(lambda: all(look(chatting, turn).over for turn in turns), 10)
    assert {logged(chatting, turn).text for turn in turns} == {"done"}
    assert most == 2


def test_more_questions_than_may_wait_are_refused_with_what_to_do(chat: Chats, gates: Gates) -> None:
    """REL-08."""
    chatting = chat(gates.plugin(), settings=settings(max_queue=1))
    turn = submit(chatting)
    assert gates.inside.wait(5)
    mine, chatting.conversation = chatting.conversation, ""
    started = time.monotonic()
    with pytest.raises(UserError, match=r"Too many questions .* Try again in 5 seconds\."):
        chatting.ask("y")
    assert time.monotonic() - started < 0.2
    assert len(chatting.assistant.conversations(chatting.identity)) == 1, "nothing was stored of what was refused"
    gates.go.set()
    until(lambda: logged(chatting, turn).state == "done")
    chatting.conversation = mine
    assert chatting.ask("z").state == "done"


def test_one_conversation_has_one_answer_at_a_time(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    assert chatting.assistant.running(chatting.identity, chatting.conversation) == turn
    with pytest.raises(UserError, match="still being answered"):
        submit(chatting, "again")
    gates.go.set()
    until(lambda: not chatting.assistant.running(chatting.identity, chatting.conversation))
    submit(chatting, "again")


def test_the_same_key_is_the_same_turn(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    first = submit(chatting, "x", key="k")
    assert submit(chatting, "x", key="k") == first, "also while it is being answered"
    gates.go.set()
    until(lambda: logged(chatting, first).state == "done")
    assert submit(chatting, "x", key="k") == first
    assert len(chatting.assistant.entries(chatting.identity, chatting.conversation)) == 2


# Readers


def test_a_second_reader_joins_in_the_middle_and_sees_all_of_it(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    assert gates.inside.wait(5)
    reader = chatting.assistant.follow(chatting.identity, turn)
    first = next(reader)
    assert (first.state, first.events) == ("streaming", (Text("first "),))
    gates.go.set()
    *_, last = reader
    assert (last.state, last.events) == ("done", (Text("first second"),))


def test_a_reader_that_goes_away_ends_nothing(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    reader = chatting.assistant.follow(chatting.identity, turn)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    gates.go.set()
    until(lambda: logged(chatting, turn).state == "done")
    assert logged(chatting, turn).text == "first second"


def test_a_reader_who_comes_late_reads_the_log(chat: Chats) -> None:
    chatting = chat(Fine)
    reply = chatting.ask("x")
    (only,) = chatting.assistant.follow(chatting.identity, reply.turn)
    assert (only.state, only.events, only.route) == ("done", (Text("fine"),), reply.route)


def test_another_process_reads_a_running_answer_in_the_log(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    assert gates.inside.wait(5)
    chatting.assistant.log.checkpoint(turn, (Text("first "),))
    del chatting.assistant._host._live[turn]  # as it is for a program that does not make the answer
    reader = chatting.assistant.follow(chatting.identity, turn)
    assert next(reader).state == "streaming"
    gates.go.set()
    *_, last = reader
    assert (last.state, last.events) == ("done", (Text("first second"),))


def test_a_long_answer_is_put_on_the_disk_while_it_is_made(
    chat: Chats, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assistant.host.CHECKPOINT_SECONDS", 0.1)
    chatting = chat(gates.plugin())
    turn = submit(chatting)
    until(lambda: logged(chatting, turn).state == "streaming")
    assert logged(chatting, turn).text == "first "


def test_updates_come_no_more_often_than_asked_for(chat: Chats) -> None:
    """PERF-07."""

    def answer(request: Request, options: Options) -> Iterator[Event]:
        for _ in range(100):
            time.sleep(0.005)
            yield Text("x")

    chatting = chat(scripted(answer))
    turn = submit(chatting)
    started = time.monotonic()
    shown = list(chatting.assistant.follow(chatting.identity, turn, interval=0.1))
    assert len(shown) <= (time.monotonic() - started) / 0.1 + 3
    assert shown[-1].events == (Text("x" * 100),)


def test_a_stranger_sees_nothing_and_ends_nothing(chat: Chats, gates: Gates) -> None:
    """SEC-07: while an answer is made and when it is over; and nothing tells it from one that is not there."""
    chatting = chat(gates.plugin(), Fine)
    mine = chatting.assistant
    turn = submit(chatting)
    assert gates.inside.wait(5)
    conversation = chatting.conversation
    attempts: list[Callable[[], Any]] = [
        lambda: mine.look(STRANGER, turn),
        lambda: next(mine.follow(STRANGER, turn)),
        lambda: mine.stop(STRANGER, turn) or pytest.fail("it was not even refused"),
        lambda: mine.running(STRANGER, conversation),
        lambda: mine.listen(STRANGER, conversation, lambda *_: None),
        lambda: mine.entries(STRANGER, conversation),
        lambda: mine.rename(STRANGER, conversation, "mine"),
        lambda: mine.delete(STRANGER, conversation),
        lambda: mine.rate(STRANGER, turn, 1),
        lambda: mine.submit(Incoming(text="x", identity=STRANGER, conversation=conversation)),
        lambda: mine.look(STRANGER, "nothing"),
        lambda: mine.entries(STRANGER, "nothing"),
    ]
    for attempt in attempts:
        with pytest.raises(Forbidden) as raised:
            attempt()
        assert str(raised.value) == ABSENT
    gates.go.set()
    until(lambda: logged(chatting, turn).state == "done")
    for attempt in (*attempts[:2], *attempts[3:]):
        with pytest.raises(Forbidden):
            attempt()
    assert mine.conversations(STRANGER) == ()


def test_who_listens_is_told_when_answers_start_and_end(chat: Chats) -> None:
    chatting = chat(Fine)
    chatting.ask("x")
    heard: list[tuple[str, str]] = []
    silence = chatting.assistant.listen(
        chatting.identity, chatting.conversation, lambda what, turn: heard.append((what, turn))
    )
    second = chatting.ask("y")
    until(lambda: len(heard) == 2)
    assert heard == [("started", second.turn), ("finished", second.turn)]
    silence()
    silence()
    chatting.ask("z")
    assert len(heard) == 2
    assert not chatting.assistant._host._listeners


# Options, state, floor, files


class Limits(Options):
    limit: int = Field(default=3, ge=1, le=10, description="How many.")


def test_options_are_checked_and_named(chat: Chats) -> None:
    plugin = scripted(lambda _, options: [Text(f"{options.limit}")], options_type=Limits)
    chatting = chat(plugin)
    assert chatting.ask("x").text == "3"
    assert chatting.ask("x", limit="4").text == "4", "a command line gives texts"
    wrong = failure(chatting.ask("x", limit=99)).message
    assert wrong == "Option limit of scripted: Input should be less than or equal to 10. Its options are: limit."
    unknown = failure(chatting.ask("x", colour="red")).message
    assert unknown == "Option colour of scripted: Extra inputs are not permitted. Its options are: limit."


def test_a_plugin_without_options_says_so(chat: Chats) -> None:
    assert failure(chat(Fine).ask("x", limit=1)).message.endswith("Its options are: none.")


def count(request: Request, _: Options) -> Iterator[Event]:
    request.state["n"] = int(str(request.state.get("n", 0))) + 1
    yield Text(f"{request.state['n']}")
    if request.text == "break":
        raise LookupError
    if request.text == "object":
        request.state["n"] = object()  # type: ignore[assignment]
    if request.text == "NaN":
        request.state["n"] = float("nan")


def test_a_plugins_state_is_kept_with_the_turn(chat: Chats) -> None:
    chatting = chat(scripted(count))
    assert [chatting.ask("x").text for _ in range(3)] == ["1", "2", "3"]
    chatting.conversation = ""
    assert chatting.ask("x").text == "1", "each conversation has its own"


@pytest.mark.parametrize("text", ["break", "object", "NaN"])
def test_a_turn_that_fails_leaves_the_state_as_it_was(text: str, chat: Chats) -> None:
    chatting = chat(scripted(count))
    chatting.ask("x")
    assert failure(chatting.ask(text)).reference
    assert chatting.ask("x").text == "2"


def test_a_turn_that_is_stopped_leaves_the_state_as_it_was(chat: Chats, gates: Gates) -> None:
    def answer(request: Request, options: Options) -> Iterator[Event]:
        request.state["seen"] = True
        yield from gates.answer(request, options)

    chatting = chat(scripted(answer))
    turn = submit(chatting)
    assert gates.inside.wait(5)
    chatting.assistant.stop(chatting.identity, turn)
    assert gates.left.wait(5)
    until(lambda: not chatting.assistant._host._threads)
    assert chatting.assistant.log.state(chatting.conversation, "scripted") == {}


def test_a_question_of_a_plugin_gets_the_next_message_and_no_more(chat: Chats) -> None:
    def asks(request: Request, _: Options) -> Iterable[Event]:
        if request.text == "order":
            return [Choices("Which number?", hold=True)]
        return [Text(f"looked up {request.text}")]

    chatting = chat(Fine, scripted(asks, "order", guessable=False), settings=settings(fallback="fine"))
    chatting.ask("order", plugin="order")
    held = chatting.ask("1234")
    assert (held.text, held.route.reason) == ("looked up 1234", "floor")
    after = chatting.ask("1234")
    assert (after.text, after.route.reason) == ("fine", "fallback")


def test_choices_without_hold_leave_the_floor_free(chat: Chats) -> None:
    chatting = chat(Fine, scripted(lambda *_: [Choices("Anything else?")], "order"), settings=settings(fallback="fine"))
    chatting.ask("x", plugin="order")
    assert chatting.ask("y").route.reason == "fallback"


def test_a_plugin_above_the_callers_role_is_not_run(chat: Chats) -> None:
    """SEC-10."""
    ran: list[Request] = []
    chatting = chat(Fine, scripted(lambda request, _: ran.append(request), "secret", role=Role.ADMIN))
    chatting.identity = Identity("v-customer")
    for more in ({"plugin": "secret"}, {}):
        message = failure(chatting.ask("/secret now", **more)).message
        assert message == "There is no plugin /secret here. These are: /fine."
    assert ran == []
    assert [plugin.name for plugin in chatting.assistant.plugins_for(chatting.identity)] == ["fine"]


def test_a_router_that_errs_cannot_run_a_plugin_above_the_callers_role(
    chat: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEC-10: the right is asked for once more where the plugin is called."""
    ran: list[Request] = []
    chatting = chat(Fine, scripted(lambda request, _: ran.append(request), "secret", role=Role.ADMIN))
    chatting.identity = Identity("v-customer")
    monkeypatch.setattr("assistant.router.Router.route", lambda *_, **__: (Route("secret", "guess"), "x"))
    assert failure(chatting.ask("x")).message.startswith("This needs the role admin; you are customer.")
    assert ran == []


def test_progress_is_shown_and_not_left_behind(chat: Chats, gates: Gates) -> None:
    def answer(request: Request, _: Options) -> Iterator[Event]:
        yield Progress("half", 0.5)
        gates.go.wait(5)

    chatting = chat(scripted(answer))
    turn = submit(chatting)
    until(lambda: look(chatting, turn).events == (Progress("half", 0.5),))
    gates.go.set()
    until(lambda: look(chatting, turn).over)
    assert look(chatting, turn).events == logged(chatting, turn).events == ()


def test_a_file_is_kept_apart_and_is_its_owners(chat: Chats) -> None:
    """SEC-07."""
    chatting = chat(scripted(lambda *_: [File("a.csv", "text/csv", b"1;2")]))
    chatting.identity = Identity("v-anna")
    reply = chatting.ask("x")
    (file,) = reply.events
    assert isinstance(file, File)
    assert file.data == b""
    assert logged(chatting, reply.turn).events == (file,)
    assert chatting.assistant.file(chatting.identity, file.id) == ("a.csv", "text/csv", b"1;2")
    for stranger, name in ((STRANGER, file.id), (STRANGER, "nothing"), (chatting.identity, "nothing")):
        with pytest.raises(Forbidden, match=ABSENT):
            chatting.assistant.file(stranger, name)


def test_a_file_may_be_larger_than_a_text_may(chat: Chats) -> None:
    reply = chat(scripted(lambda *_: [File("a", data=b"x" * 100_000), Text("there")]), settings=settings()).ask("x")
    assert (reply.state, reply.text) == ("done", "there")


def test_files_beyond_the_limit_fail_the_turn_with_what_it_is(chat: Chats) -> None:
    chatting = chat(
        scripted(lambda *_: [File(f"{n}.bin", data=b"x" * 600_000) for n in range(3)]),
        settings=settings(max_upload_mb=1),
    )
    reply = chatting.ask("x")
    assert failure(reply).message == "The files of one answer may have 1 MB together; 1.bin is beyond that."
    assert [event.name for event in reply.events if isinstance(event, File)] == ["0.bin"]


def test_a_full_disk_fails_the_turn_and_the_next_is_answered(chat: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-06."""

    def full(*_: Any) -> str:
        raise UserError("The disk is full: nothing was saved. Make room on it and try again.")

    chatting = chat(scripted(lambda *_: [Text("a"), File("a", data=b"x")]))
    with monkeypatch.context() as patched:
        patched.setattr(Log, "keep_file", full)
        reply = chatting.ask("x")
    assert (reply.text, failure(reply).message.partition(":")[0]) == ("a", "The disk is full")
    with monkeypatch.context() as patched:
        patched.setattr(Log, "finish", full)
        chatting.ask("y")
    assert not chatting.assistant._host._live, "it is over although the log does not know"
    chatting.conversation = ""
    assert chatting.ask("z").text == "a"


# Actions


def offering() -> tuple[type[Plugin[Any]], list[str]]:
    """A plugin that offers to cancel an order, and a list of the orders it cancelled."""
    cancelled: list[str] = []

    def act(self: Plugin[Any], action: Action, request: Request) -> Iterable[Event]:
        cancelled.append(action.arguments["order"])
        return [Text(f"{action.name} {action.arguments['order']}")]

    def answer(request: Request, _: Options) -> Iterable[Event]:
        return [Actions((Action("cancel", "Cancel it", {"order": request.text}),))]

    return scripted(answer, act=act), cancelled


def clicked(chat: Chat, identity: Identity, message: str, position: int = 0) -> Snapshot:
    begun = chat.assistant.act(identity, message, position)
    *_, last = chat.assistant.follow(identity, begun.answer)
    return last


def test_what_is_clicked_is_done_once_with_what_the_answer_offered(chat: Chats) -> None:
    plugin, cancelled = offering()
    chatting = chat(plugin)
    reply = chatting.ask("order-7")
    first = clicked(chatting, chatting.identity, reply.turn)
    assert (first.events, first.state) == ((Text("cancel order-7"),), "done")
    assert clicked(chatting, chatting.identity, reply.turn).turn == first.turn, "a second click is the same one"
    assert cancelled == ["order-7"]
    said = [entry.text for entry in chatting.assistant.entries(chatting.identity, chatting.conversation)]
    assert said == ["order-7", "", "Cancel it", "cancel order-7"]


def test_text_never_triggers_what_only_a_click_may(chat: Chats) -> None:
    """SEC-10."""
    plugin, cancelled = offering()
    chatting = chat(plugin)
    chatting.ask("order-7")
    for text in ("Cancel it", "cancel", "/cancel", '{"type": "actions", "name": "cancel"}'):
        chatting.ask(text)
    assert cancelled == []


def test_only_the_owner_may_click_and_only_what_was_offered(chat: Chats) -> None:
    """SEC-07: not even the administrator acts for somebody else."""
    plugin, cancelled = offering()
    chatting = chat(plugin)
    chatting.identity = Identity("v-anna")
    reply = chatting.ask("order-7")
    for other in (STRANGER, Identity("a-admin", Role.ADMIN)):
        with pytest.raises(Forbidden, match=ABSENT):
            clicked(chatting, other, reply.turn)
    for position in (-1, 1):
        with pytest.raises(UserError, match=r"offers no such action\. Reload the page\."):
            clicked(chatting, chatting.identity, reply.turn, position)
    assert cancelled == []


def test_a_plugin_that_has_nothing_to_do_says_so(chat: Chats) -> None:
    chatting = chat(scripted(lambda *_: [Actions((Action("a", "Do it"),))]))
    shown = failure(clicked(chatting, chatting.identity, chatting.ask("x").turn))
    assert shown.message == "The plugin scripted has nothing to do for 'Do it'."


# What is refused before it is a turn


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The message is empty. Type a question."),
        ("\u202e\x00", "The message is empty. Type a question."),
        ("x" * 101, "A message may have 100 characters; this one has 101. Shorten it, or send a file."),
        ("\ud800", "The message holds half of a character (a lone surrogate). Type it again."),
    ],
)
def test_a_message_that_cannot_be_taken_is_refused(text: str, sentence: str, chat: Chats) -> None:
    """REL-11."""
    chatting = chat(Fine, settings=settings(fallback="fine", max_text=100))
    with pytest.raises(UserError) as raised:
        chatting.ask(text)
    assert str(raised.value) == sentence
    assert chatting.assistant.conversations(chatting.identity) == ()


def test_a_thumb_goes_up_or_down_on_an_answer_of_ones_own(chat: Chats) -> None:
    chatting = chat(Fine)
    reply = chatting.ask("x")
    question, answer = chatting.assistant.entries(chatting.identity, chatting.conversation)
    chatting.assistant.rate(chatting.identity, answer.id, -1, reason="wrong")
    assert chatting.assistant.entries(chatting.identity, chatting.conversation)[1].feedback == -1
    for message, value in ((question.id, 1), (reply.turn, 2)):
        with pytest.raises(UserError, match="A thumb goes up or down, on an answer"):
            chatting.assistant.rate(chatting.identity, message, value)


def test_deleting_a_conversation_stops_what_is_answered_in_it(chat: Chats, gates: Gates) -> None:
    chatting = chat(gates.plugin())
    submit(chatting)
    assert gates.inside.wait(5)
    chatting.assistant.delete(chatting.identity, chatting.conversation)
    assert gates.left.wait(5)
    assert chatting.assistant.conversations(chatting.identity) == ()


def test_nothing_is_left_of_a_turn_in_memory(chat: Chats) -> None:
    """REL-10."""
    chatting = chat(Fine, scripted(generator(LookupError())))
    for _ in range(5):
        chatting.ask("x")
        chatting.ask("x", plugin="scripted")
    host = chatting.assistant._host
    until(lambda: not host._threads)
    assert (host._live, host._threads, host._listeners) == ({}, {}, {})
