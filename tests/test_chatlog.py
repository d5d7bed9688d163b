"""Conversations as the log keeps them: a tree of turns, each committed before and after it is answered."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from assistant import chatlog
from assistant.chatlog import RESTARTED, Begun, Conversation, Finished, Log, Prediction
from assistant.errors import Forbidden, UserError
from assistant.identity import ABSENT, Identity
from assistant.messages import Event, Failure, File, Incoming, Message, Progress, Route, Source, Sources, Text
from assistant.schema import SCHEMA, conversations, messages, predictions
from assistant.storage import Database

ANNA, BEN = Identity("v-anna"), Identity("v-ben")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path)
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> Log:
    return Log(database)


def begin(log: Log, text: str = "a question", conversation: str = "", **more: Any) -> Begun:
    return log.begin(Incoming(text=text, identity=ANNA, conversation=conversation, **more), text)


def finish(log: Log, begun: Begun, *events: Event, **more: Any) -> None:
    log.finish(begun, Finished(state=more.pop("state", "done"), events=events or (Text("an answer"),), **more))


def turn(log: Log, text: str, conversation: str = "", answer: str = "an answer") -> Begun:
    begun = begin(log, text, conversation)
    finish(log, begun, Text(answer))
    return begun


def expire(database: Database, answer: str) -> None:
    """The lease was not renewed in time."""
    statement = update(messages).where(messages.c.id == answer).values(lease_until=0.0)
    database.write(lambda c: c.execute(statement))


def column(database: Database, name: str, message: str) -> Any:
    with database.read() as connection:
        return connection.scalar(select(messages.c[name]).where(messages.c.id == message))


# A turn


def test_a_question_is_on_the_disk_before_it_is_answered(log: Log) -> None:
    begun = begin(log, "how long?")
    question, answer = log.entries(begun.conversation)
    assert (question.id, question.role, question.author, question.text, question.state) == (
        begun.question, "user", ANNA.id, "how long?", "done",
    )  # fmt: skip
    assert (answer.id, answer.role, answer.text, answer.state, answer.events) == (
        begun.answer, "assistant", "", "pending", (),
    )  # fmt: skip


def test_a_finished_answer_keeps_all_that_belongs_to_it(log: Log, database: Database) -> None:
    begun = begin(log)
    sources = Sources((Source("a", "A", "p", 0.9),), threshold=0.5, sequence=7)
    route = Route("support", "guess", 0.8)
    finish(
        log, begun, sources, Text("Thirty "), Text("days."),
        plugin="support", options={"limit": 2}, route=route, knowledge_sequence=7, threshold=0.5,
        timings={"total_ms": 12.5},
        predictions=(Prediction(kind="intent", model="m", version="1", value={"labels": []}),),
    )  # fmt: skip
    conversation, answer = log.entry(begun.answer)
    assert conversation == begun.conversation
    assert (answer.text, answer.state, answer.route) == ("Thirty days.", "done", route)
    assert answer.events == (sources, Text("Thirty "), Text("days."))
    assert (answer.knowledge_sequence, answer.timings) == (7, {"total_ms": 12.5})
    assert column(database, "options", begun.answer) == {"limit": 2}
    assert column(database, "threshold", begun.answer) == 0.5
    with database.read() as connection:
        assert connection.execute(select(predictions.c.message, predictions.c.model)).all() == [(begun.question, "m")]


def test_the_digest_is_of_what_came_in_and_not_of_what_was_made_of_it(log: Log, database: Database) -> None:
    """SEC-16: the audit trail names the bytes before normalisation."""
    begun = log.begin(Incoming(text="raw\u202e", identity=ANNA), "raw")
    assert column(database, "text", begun.question) == column(database, "input", begun.question) == "raw"
    assert column(database, "raw_digest", begun.question) == hashlib.sha256("raw\u202e".encode()).hexdigest()


def test_the_next_turn_hangs_on_the_last(log: Log, database: Database) -> None:
    first = turn(log, "one")
    second = turn(log, "two", first.conversation)
    assert column(database, "parent", first.question) is None
    assert column(database, "parent", first.answer) == first.question
    assert column(database, "parent", second.question) == first.answer
    assert [entry.text for entry in log.entries(first.conversation)] == ["one", "an answer", "two", "an answer"]


def test_only_the_branch_that_is_shown_is_shown(log: Log, database: Database) -> None:
    """Edit and retry add a branch: nothing is overwritten."""
    first = turn(log, "one")
    turn(log, "two", first.conversation)
    point = update(conversations).values(head=first.answer)
    database.write(lambda c: c.execute(point))
    third = begin(log, "three", first.conversation)
    assert [entry.text for entry in log.entries(first.conversation)] == ["one", "an answer", "three", ""]
    assert third.history == (Message("user", "one"), Message("assistant", "an answer"))
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(messages)) == 6


def test_the_history_is_what_was_said_before_the_question(log: Log) -> None:
    first = turn(log, "one")
    assert first.history == ()
    assert begin(log, "two", first.conversation).history == (
        Message("user", "one"),
        Message("assistant", "an answer"),
    )


def test_a_plugin_reads_the_last_messages_oldest_first(log: Log) -> None:
    first = turn(log, "one")
    turn(log, "two", first.conversation, "the second")
    assert log.history(first.conversation, limit=2) == (Message("user", "two"), Message("assistant", "the second"))


def test_order_is_by_number_whatever_the_clock_says(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(chatlog, "now", lambda: float(next(clock)))
    first = turn(log, "1")
    for n in range(2, 6):
        turn(log, str(n), first.conversation)
    said = [entry.text for entry in log.entries(first.conversation) if entry.role == "user"]
    assert said == ["1", "2", "3", "4", "5"]


def test_the_same_key_gives_the_same_turn(log: Log) -> None:
    """REL-01: a message that is sent twice is there once."""
    first = turn(log, "one")
    sent = begin(log, "two", first.conversation, key="k")
    again = begin(log, "two", first.conversation, key="k")
    assert (again.question, again.answer, again.repeated) == (sent.question, sent.answer, True)
    assert not sent.repeated
    assert len(log.entries(first.conversation)) == 4


def test_the_same_key_in_another_conversation_is_another_message(log: Log) -> None:
    first, second = begin(log, "one", key="k"), begin(log, "one", key="k")
    assert first.conversation != second.conversation
    assert not second.repeated


def test_one_turn_at_a_time(log: Log) -> None:
    begun = begin(log)
    for _ in ("pending", "streaming"):
        with pytest.raises(UserError, match=r"still being answered\. Wait for it, or stop it\."):
            begin(log, "again", begun.conversation)
        log.checkpoint(begun.answer, (Text("half"),))
    finish(log, begun)
    begin(log, "again", begun.conversation)


def test_the_first_question_names_the_conversation(log: Log) -> None:
    begun = turn(log, "How  long do I have?\n" + "x" * 100)
    turn(log, "another", begun.conversation)
    assert log.conversation(begun.conversation).title == ("How long do I have? " + "x" * 100)[:60]


# How a turn ends


def test_a_checkpoint_is_what_is_left_after_a_kill(log: Log) -> None:
    begun = begin(log)
    log.checkpoint(begun.answer, (Text("half of it"), Progress("more", 0.5)))
    _, entry = log.entry(begun.answer)
    assert (entry.state, entry.text) == ("streaming", "half of it")


def test_a_late_checkpoint_does_not_undo_the_end(log: Log) -> None:
    begun = begin(log)
    finish(log, begun, Text("all of it"))
    log.checkpoint(begun.answer, (Text("half"),))
    _, entry = log.entry(begun.answer)
    assert (entry.state, entry.text) == ("done", "all of it")


def test_an_answer_that_nobody_makes_any_more_has_failed(log: Log, database: Database) -> None:
    begun = begin(log)
    log.checkpoint(begun.answer, (Text("half"), Progress("more", 0.5)))
    expire(database, begun.answer)
    assert log.sweep() == 1
    _, entry = log.entry(begun.answer)
    assert (entry.state, entry.events) == ("failed", (Text("half"), Failure(RESTARTED)))
    assert log.sweep() == 0


def test_an_answer_that_is_being_made_is_not_swept(log: Log, database: Database) -> None:
    begun = begin(log)
    assert log.sweep() == 0
    assert Log(database).sweep() == 0
    assert log.entry(begun.answer)[1].state == "pending"


def test_a_renewed_lease_holds(log: Log, database: Database) -> None:
    begun = begin(log)
    expire(database, begun.answer)
    log.renew([begun.answer])
    assert log.sweep() == 0
    log.renew([])


def test_a_lease_that_ran_out_lets_the_next_question_in(log: Log, database: Database) -> None:
    begun = begin(log)
    expire(database, begun.answer)
    begin(log, "again", begun.conversation)


def test_what_a_killed_program_streamed_stays_and_the_answer_has_failed(log: Log) -> None:
    """REL-01, REL-12: its lease still runs, but its process does not."""
    child = subprocess.Popen(
        [
            sys.executable, "-c",
            textwrap.dedent("""
                import sys
                from pathlib import Path
                from assistant.chatlog import Log
                from assistant.identity import Identity
                from assistant.messages import Incoming, Text
                from assistant.storage import Database
                log = Log(Database.at(Path(sys.argv[1])))
                begun = log.begin(Incoming(text="q", identity=Identity("v-anna")), "q")
                log.checkpoint(begun.answer, (Text("half"),))
                print(begun.answer, begun.conversation, flush=True)
                input()
            """),
            log._database.url.removeprefix("sqlite:///").removesuffix("/assistant.db"),
        ],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    answer, conversation = child.stdout.readline().split()
    assert log.sweep() == 0, "the program still runs"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert log.sweep() == 1
    _, entry = log.entry(answer)
    assert (entry.state, entry.events) == ("failed", (Text("half"), Failure(RESTARTED)))
    begin(log, "again", conversation)


# Beside the turns


def test_a_thumb_can_be_turned_and_taken_back(log: Log) -> None:
    begun = turn(log, "one")
    for value in (1, -1, 0):
        log.rate(begun.answer, ANNA.id, value)
        assert log.entries(begun.conversation)[-1].feedback == value


def test_the_owners_thumb_is_shown_and_not_somebody_elses(log: Log) -> None:
    begun = turn(log, "one")
    log.rate(begun.answer, ANNA.id, 1)
    log.rate(begun.answer, BEN.id, -1)
    assert log.entries(begun.conversation)[-1].feedback == 1


def test_a_plugins_state_is_its_own_in_each_conversation(log: Log) -> None:
    begun = begin(log)
    assert log.state(begun.conversation, "hello") == {}
    finish(log, begun, plugin="hello", plugin_state={"count": 1, "deep": [{"a": None}]})
    assert log.state(begun.conversation, "hello") == {"count": 1, "deep": [{"a": None}]}
    assert log.state(begun.conversation, "support") == {}
    assert log.state(begin(log).conversation, "hello") == {}
    finish(log, begin(log, "two", begun.conversation), plugin="hello", plugin_state={"count": 2})
    assert log.state(begun.conversation, "hello") == {"count": 2}


def test_the_floor_goes_to_whoever_asked_and_is_given_back(log: Log) -> None:
    first = begin(log)
    assert first.floor == ""
    finish(log, first, plugin="hello", floor="hello")
    assert log.conversation(first.conversation).floor == "hello"
    second = begin(log, "two", first.conversation)
    assert second.floor == "hello"
    assert log.conversation(first.conversation).floor == ""


def test_a_file_comes_back_as_it_was_given(log: Log) -> None:
    begun = turn(log, "one")
    data = bytes(range(256))
    file = log.keep_file(begun.conversation, ANNA.id, "räp\nort.bin", ("application/x-thing", data))
    assert log.file(file) == (ANNA.id, "räp\nort.bin", "application/x-thing", data)
    with pytest.raises(Forbidden, match=ABSENT):
        log.file("nothing")


def test_a_file_in_an_answer_is_named_and_not_held(log: Log) -> None:
    begun = begin(log)
    finish(log, begun, File("a.txt", data=b"secret", id="f1"))
    assert log.entry(begun.answer)[1].events == (File("a.txt", id="f1"),)


def test_a_conversation_is_listed_for_its_owner_the_last_used_first(log: Log) -> None:
    older, newer = turn(log, "older"), turn(log, "newer")
    assert [c.title for c in log.conversations(ANNA.id)] == ["newer", "older"]
    turn(log, "more", older.conversation)
    assert [c.id for c in log.conversations(ANNA.id)] == [older.conversation, newer.conversation]
    assert log.conversations(BEN.id) == ()
    assert len(log.conversations(ANNA.id, limit=1)) == 1


def test_an_empty_conversation_waits_for_its_first_question(log: Log) -> None:
    made = log.create(ANNA, title="t", locale="zh")
    assert made == Conversation(id=made.id, owner=ANNA.id, title="t", locale="zh", updated=made.updated)
    assert log.entries(made.id) == ()


def test_a_title_is_one_line_of_a_bounded_length(log: Log) -> None:
    made = log.create(ANNA)
    log.rename(made.id, "  a \n b " + "x" * 200)
    assert log.conversation(made.id).title == ("a b " + "x" * 200)[:120]
    with pytest.raises(UserError, match="A title needs at least one letter"):
        log.rename(made.id, " \n ")


def test_a_deleted_conversation_is_as_if_it_had_never_been(log: Log) -> None:
    """SEC-07: and nothing tells it from one of somebody else's."""
    begun = turn(log, "one")
    log.delete(begun.conversation)
    assert log.conversations(ANNA.id) == ()
    missing = begun.conversation
    for attempt in (
        lambda: log.conversation(missing),
        lambda: log.entries(missing),
        lambda: log.rename(missing, "x"),
        lambda: log.delete(missing),
        lambda: begin(log, "two", missing),
        lambda: log.conversation("never heard of"),
        lambda: log.entry("never heard of"),
    ):
        with pytest.raises(Forbidden, match=ABSENT):
            attempt()


# A program that is killed


CLIENT = """
    import sys
    from collections.abc import Iterable
    from pathlib import Path
    from assistant import Event, Identity, Options, Plugin, Request, Text
    from assistant.app import Assistant
    from assistant.messages import Incoming
    from assistant.settings import PluginsSection, Settings

    class Echo(Plugin[Options]):
        name = "echo"
        summary = "Says it again."

        def handle(self, request: Request, options: Options) -> Iterable[Event]:
            yield Text(request.text)

    settings = Settings(plugins=PluginsSection(fallback="echo", disabled=("hello", "support")))
    assistant = Assistant(Path(sys.argv[1]), settings, plugins=[Echo])
    conversation, first = sys.argv[2], int(sys.argv[3])
    print("ready", flush=True)
    for n in range(first, first + 100_000):
        incoming = Incoming(text=str(n), identity=Identity("v-anna"), conversation=conversation, plugin="echo", key=str(n))
        begun = assistant.submit(incoming)
        conversation = begun.conversation
        print(n, conversation, flush=True)
        for snapshot in assistant.follow(incoming.identity, begun.answer, interval=0):
            pass
        print(snapshot.state, n, flush=True)
"""


@pytest.mark.slow
def test_no_acknowledged_message_is_lost_doubled_or_reordered_by_kills(tmp_path: Path) -> None:
    """REL-01: a program that is killed again and again while it takes messages."""
    chance = random.Random(20)
    acknowledged: list[int] = []
    answered: set[int] = set()
    conversation = ""
    for _ in range(8):
        first = acknowledged[-1] + 1 if acknowledged else 0
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT), str(tmp_path), conversation, str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.01, 0.4))
        child.send_signal(signal.SIGKILL)
        for line in child.communicate()[0].splitlines():
            words = line.split()
            if words[0] == "done" and len(words) == 2:
                answered.add(int(words[1]))
            elif words[0].isdigit() and len(words) == 2 and len(words[1]) == 32:
                acknowledged.append(int(words[0]))
                conversation = words[1]
    database = Database.at(tmp_path)
    log = Log(database)
    log.sweep()
    entries = log.entries(conversation)
    asked = [int(entry.text) for entry in entries if entry.role == "user"]
    assert len(acknowledged) > 8
    assert asked == sorted(set(asked)), "doubled or reordered"
    assert set(acknowledged) <= set(asked), "lost"
    assert len(asked) - len(acknowledged) <= 8, "no more than the one that was being taken at each kill"
    replies = {int(q.text): a for q, a in zip(entries[::2], entries[1::2], strict=True)}
    for n, reply in replies.items():
        if n in answered:
            assert (reply.state, reply.text) == ("done", str(n))
        else:
            assert reply.state in ("done", "failed")
    assert database.health() == (SCHEMA, "")
    database.close()
