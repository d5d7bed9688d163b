"""One answer in the making, and the gate in front of a plugin."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from assistant import Event, Label, Labels, Options, Plugin, Progress, Request, Route, Text, UserError
from assistant.chatlog import Begun
from assistant.messages import Failure
from assistant.turns import CUT, Gate, LiveTurn, TurnOver, drain_into

LABELS = Labels((Label("a", 1.0),))


def make(max_bytes: int = 1000) -> LiveTurn:
    begun = Begun(conversation="c", question="q", answer="a", history=())
    return LiveTurn(begun, "v", time.monotonic() + 60, max_bytes)


def events(turn: LiveTurn) -> tuple[Event, ...]:
    return turn.snapshot()[1].events


# The answer


def test_texts_that_follow_each_other_are_one() -> None:
    turn = make()
    for event in (Text("a"), Text("b"), LABELS, Text("c")):
        turn.add(event)
    assert events(turn) == (Text("ab"), LABELS, Text("c"))


def test_progress_is_replaced_by_what_comes_next() -> None:
    turn = make()
    turn.add(Text("a"))
    turn.add(Progress("one", 0.1))
    turn.add(Progress("two", 0.2))
    assert events(turn) == (Text("a"), Progress("two", 0.2))
    turn.add(Text("b"))
    assert events(turn) == (Text("ab"),), "a text goes on where it was before the progress"


def test_progress_is_not_left_behind() -> None:
    turn = make()
    turn.add(LABELS)
    turn.add(Progress("half", 0.5))
    turn.end("done")
    assert events(turn) == (LABELS,)


def test_a_turn_is_pending_then_streaming_then_over() -> None:
    turn = make()
    seen = [turn.snapshot()[1]]
    turn.routed(Route("hello", "explicit"))
    turn.add(Text("a"))
    seen.append(turn.snapshot()[1])
    assert turn.end("done")
    seen.append(turn.snapshot()[1])
    assert [(one.state, one.over) for one in seen] == [("pending", False), ("streaming", False), ("done", True)]
    assert (seen[0].route, seen[2].route) == (None, Route("hello", "explicit"))


def test_whoever_ends_it_first_decides_how() -> None:
    turn = make()
    assert turn.end("stopped")
    assert not turn.end("failed", Failure("late"))
    snapshot = turn.snapshot()[1]
    assert (snapshot.state, snapshot.events) == ("stopped", ())


def test_after_the_end_nothing_is_taken() -> None:
    turn = make()
    turn.end("failed", Failure("broken"))
    with pytest.raises(TurnOver):
        turn.add(Text("late"))
    assert events(turn) == (Failure("broken"),)


@pytest.mark.parametrize(("state", "cancelled"), [("done", False), ("stopped", True), ("failed", True)])
def test_only_a_turn_that_was_broken_off_tells_its_plugin(state: Any, cancelled: bool) -> None:
    turn = make()
    turn.end(state)
    assert turn.cancelled.is_set() is cancelled


def test_an_answer_is_cut_where_it_gets_too_long() -> None:
    """REL-07."""
    turn = make(max_bytes=10)
    turn.add(Text("123456"))
    with pytest.raises(TurnOver):
        turn.add(Text("789012345"))
    assert events(turn) == (Text("1234567890" + CUT),)
    assert turn.cancelled.is_set()


def test_a_cut_leaves_whole_characters() -> None:
    turn = make(max_bytes=7)
    with pytest.raises(TurnOver):
        turn.add(Text("退货要多久"))
    assert events(turn) == (Text("退货" + CUT),)


def test_an_endless_answer_of_nothing_is_cut_too() -> None:
    turn = make(max_bytes=100)
    with pytest.raises(TurnOver):  # noqa: PT012 - some of them are taken
        for _ in range(101):
            turn.add(Text(""))
    assert events(turn) == (Text(CUT),)


def test_events_that_are_no_texts_count_as_well() -> None:
    turn = make(max_bytes=100)
    with pytest.raises(TurnOver):  # noqa: PT012 - some of them are taken
        for _ in range(100):
            turn.add(LABELS)
    assert events(turn)[-1] == Text(CUT)
    assert len(events(turn)) < 5


def test_a_reader_is_woken_by_what_is_new() -> None:
    turn = make()
    version, _ = turn.snapshot()
    timer = threading.Timer(0.05, turn.add, [Text("a")])
    timer.start()
    started = time.monotonic()
    turn.wait(version, 10)
    assert time.monotonic() - started < 5
    assert turn.snapshot()[0] > version
    timer.join()


def test_a_reader_of_an_old_version_does_not_wait() -> None:
    turn = make()
    version, _ = turn.snapshot()
    turn.add(Text("a"))
    turn.wait(version, 60)


# What a plugin gives back


def drained(answer: Any) -> list[Event]:
    taken: list[Event] = []
    drain_into(answer, taken.append)
    return taken


def test_a_list_is_an_answer() -> None:
    assert drained([Text("a"), LABELS]) == [Text("a"), LABELS]
    assert drained(()) == []


@pytest.mark.parametrize("answer", ["text", b"bytes", None, 5, object(), Text("a")], ids=lambda a: type(a).__name__)
def test_what_is_no_stream_of_events_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=f"expected handle to yield or return events, found {type(answer).__name__}"):
        drained(answer)


def test_a_generator_is_closed_when_nobody_takes_any_more() -> None:
    closed: list[bool] = []

    def answer() -> Iterator[Event]:
        try:
            yield Text("a")
            yield Text("b")
        finally:
            closed.append(True)

    def take(_: Event) -> None:
        raise TurnOver

    with pytest.raises(TurnOver):
        drain_into(answer(), take)
    assert closed == [True]


# The gate


class Counting(Plugin[Options]):
    name = "counting"
    summary = "Counts how often it is opened."
    max_concurrency = 2

    def __init__(self) -> None:
        self.opened = self.closed = 0

    def open(self) -> None:
        time.sleep(0.05)
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def handle(self, request: Request, options: Options) -> list[Event]:
        return []


def test_a_plugin_is_opened_once_however_many_come() -> None:
    plugin = Counting()
    gate = Gate(plugin)
    threads = [threading.Thread(target=gate.enter, args=(make(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plugin.opened == 1
    gate.close()
    gate.close()
    assert plugin.closed == 1


def test_a_plugin_that_was_never_opened_is_not_closed() -> None:
    plugin = Counting()
    Gate(plugin).close()
    assert plugin.closed == 0


def test_who_is_stopped_while_waiting_for_a_slot_leaves() -> None:
    gate = Gate(Counting())
    gate.enter(make())
    gate.enter(make())
    waiting = make()
    threading.Timer(0.05, waiting.end, ["stopped"]).start()
    with pytest.raises(TurnOver):
        gate.enter(waiting)
    gate.leave()
    gate.enter(make())


def test_who_is_stopped_while_the_plugin_opens_gives_the_slot_back() -> None:
    gate = Gate(Counting())
    for _ in range(3):
        over = make()
        over.end("stopped")
        with pytest.raises(TurnOver):
            gate.enter(over)
    gate.enter(make())


def test_a_plugin_that_hangs_twice_is_suspended_until_one_of_them_ends() -> None:
    gate = Gate(Counting())
    gate.enter(make())
    gate.hangs(threading.get_ident())
    gate.hangs(threading.get_ident())
    gate.enter(make())
    gate.hangs(-1)
    with pytest.raises(UserError, match=r"The plugin counting is suspended: 2 of its answers did not stop"):
        gate.enter(make())
    gate.leave()
    gate.enter(make())


def test_a_plugin_that_is_still_opening_does_not_hold_up_the_end() -> None:
    gate = Gate(Counting())
    with gate._lock:
        started = time.monotonic()
        gate.close()
        assert time.monotonic() - started < 5
