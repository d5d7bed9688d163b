"""Two visitors on one server: nothing of A's can be read, streamed, stopped, changed or deleted by B (SEC-07)."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assistant.identity import new_id
from tests.server.serving import Served
from tests.server.visitor import Outcome, Visitor

CANARY = "canary-of-alice-7251"
ABSENT = "There is nothing here under that address, or it is not yours."


@dataclass
class Alice:
    """A visitor with a finished conversation, an answer to rate and a file in it."""

    visitor: Visitor
    conversation: str
    answer: str
    file: str


@pytest.fixture(scope="module")
def alice(live: Served) -> Iterator[Alice]:
    """Alice, and what is hers."""
    with Visitor(live.address) as visitor:
        conversation, outcome = visitor.ask(f"/everything {CANARY}")
        assert CANARY in outcome.text
        file = re.search(r"/files/([0-9a-f]{32})", outcome.text)
        answer = re.search(r"id-([0-9a-f]{32})", outcome.text)
        assert file
        assert answer
        yield Alice(visitor, conversation, answer[1], file[1])


@pytest.fixture(scope="module")
def bob(live: Served) -> Iterator[Visitor]:
    """Bob, who has a conversation of his own and knows all of Alice's ids."""
    with Visitor(live.address) as visitor:
        visitor.ask("/hello")
        yield visitor


def rows(home: Path, conversation: str) -> list[Any]:
    """All that the database holds of a conversation: whoever changes anything of it changes this."""
    with sqlite3.connect(f"file:{home / 'assistant.db'}?mode=ro", uri=True) as connection:
        found: list[Any] = []
        for query in (
            "SELECT * FROM conversations WHERE id = ?",
            "SELECT id, role, text, state, events FROM messages WHERE conversation = ? ORDER BY seq",
            "SELECT feedback.* FROM feedback JOIN messages ON messages.id = feedback.message WHERE conversation = ?",
            "SELECT * FROM files WHERE conversation = ?",
        ):
            found += connection.execute(query, (conversation,)).fetchall()
    connection.close()
    return found


def thumb(answer: str, liked: object = True) -> dict[str, Any]:
    """What the page sends when a thumb is clicked on an answer."""
    return {"index": 1, "value": [f'<div class="answer done id-{answer}"><p>x</p></div>'], "liked": liked}


Try = Callable[[Visitor, str, str], Outcome]
ATTEMPTS: dict[str, Try] = {
    # handler: what Bob sends, given a conversation and an answer of Alice's
    "_load": lambda bob, conversation, answer: bob.call("_load", query={"c": conversation}),
    "_wake": lambda bob, conversation, answer: bob.call("_wake", conversation),
    "_wake_1": lambda bob, conversation, answer: bob.call("_wake_1", conversation),
    "_new": lambda bob, conversation, answer: bob.call("_new", query={"c": conversation}),
    "_ask": lambda bob, conversation, answer: bob.call("_ask", "and what did I say?", conversation),
    "_act": lambda bob, conversation, answer: bob.call("_act", f"{answer} 0"),
    "_halt": lambda bob, conversation, answer: bob.call("_halt", conversation),
    "_rename": lambda bob, conversation, answer: bob.call("_rename", conversation, "Bob's now"),
    "_confirm": lambda bob, conversation, answer: bob.call("_confirm"),
    "_delete": lambda bob, conversation, answer: bob.call("_delete", conversation),
    "_rate": lambda bob, conversation, answer: bob.call("_rate", event=thumb(answer, "Dislike")),
}
REFUSED = {"_ask", "_act", "_halt", "_rename", "_delete", "_rate"}
"""These say so; the others show an empty page, or have nothing to do with a conversation."""
SHOWS = {"_load", "_wake", "_wake_1", "_ask", "_act", "_rename", "_new", "_delete"}
"""These show the conversation, or its title in the list, to whom it belongs."""


def test_every_handler_has_a_case(bob: Visitor) -> None:
    """A handler that is added to the page must be added here."""
    assert set(bob.handlers) == set(ATTEMPTS)


@pytest.mark.parametrize("handler", sorted(ATTEMPTS))
def test_no_handler_reaches_what_is_anothers(live: Served, alice: Alice, bob: Visitor, handler: str) -> None:
    """SEC-07: with every id in hand, by raw handler number, Bob sees nothing and changes nothing."""
    before = rows(live.home, alice.conversation)
    assert len(before) >= 4
    outcome = ATTEMPTS[handler](bob, alice.conversation, alice.answer)
    assert outcome.success is (handler not in REFUSED)
    if handler in REFUSED:
        assert outcome.error == ABSENT
    assert CANARY not in outcome.text
    assert alice.conversation not in outcome.text
    assert rows(live.home, alice.conversation) == before


@pytest.mark.parametrize("handler", sorted(ATTEMPTS))
def test_the_owner_is_let_in(live: Served, alice: Alice, handler: str) -> None:
    """The test of the tests: what Bob tries works for Alice, on a conversation like the one he tried it on."""
    with Visitor(live.address) as again:
        again.client.cookies = alice.visitor.client.cookies
        conversation, outcome = again.ask(f"/everything {CANARY}")
        answer = re.search(r"id-([0-9a-f]{32})", outcome.text)
        assert answer
        before = rows(live.home, conversation)
        outcome = ATTEMPTS[handler](again, conversation, answer[1])
        assert outcome.success
        assert (CANARY in outcome.text) is (handler in SHOWS)
        assert (rows(live.home, conversation) != before) is (handler in {"_ask", "_act", "_rename", "_delete", "_rate"})


@pytest.mark.parametrize("handler", sorted(REFUSED))
def test_what_is_anothers_looks_like_what_is_not_there(alice: Alice, bob: Visitor, handler: str) -> None:
    """Ids cannot be probed: a made-up one gets the same words as one of Alice's."""
    made_up = ATTEMPTS[handler](bob, new_id(), new_id())
    assert made_up.error == ATTEMPTS[handler](bob, alice.conversation, alice.answer).error


def test_a_running_answer_is_its_owners(live: Served, alice: Alice, bob: Visitor) -> None:
    """Bob can neither follow, stop nor add to an answer that is being made, and it goes on."""
    with alice.visitor.asking("/count 12 0.25") as (conversation, answer):
        for attempt in ("_load", "_wake", "_ask", "_halt", "_delete", "_rename", "_rate"):
            outcome = ATTEMPTS[attempt](bob, conversation, answer)
            assert answer not in outcome.text
            assert not re.search(r"\bn1\b", outcome.text)
        assert bob.client.get("/events", params={"conversation": conversation}).status_code == 404
    assert [row[2:4] for row in rows(live.home, conversation) if row[0] == answer] == [
        (" ".join(f"n{number}" for number in range(1, 13)) + " counted.", "done")
    ]


def test_the_stream_of_another_is_absent(alice: Alice, bob: Visitor) -> None:
    """/events for Alice's conversation and for a made-up one: the same answer."""
    hers = bob.client.get("/events", params={"conversation": alice.conversation})
    none = bob.client.get("/events", params={"conversation": new_id()})
    assert (hers.status_code, hers.text) == (none.status_code, none.text) == (404, f'{{"error":"{ABSENT}"}}')


def test_the_file_of_another_is_absent(live: Served, alice: Alice, bob: Visitor) -> None:
    """A file is its owner's; for everybody else the address leads nowhere. It is saved, never shown."""
    own = alice.visitor.client.get(f"/files/{alice.file}")
    assert (own.status_code, own.text) == (200, "Invoice 4711\nTotal 59.90\n")
    assert own.headers["content-disposition"] == 'attachment; filename="invoice 4711.txt"'
    assert own.headers["content-type"] == "application/octet-stream"
    hers, none = bob.client.get(f"/files/{alice.file}"), bob.client.get(f"/files/{new_id()}")
    assert (hers.status_code, hers.text) == (none.status_code, none.text) == (404, f'{{"error":"{ABSENT}"}}')


def test_the_list_shows_ones_own(alice: Alice, bob: Visitor) -> None:
    """Nobody sees that others have conversations."""
    assert alice.conversation in alice.visitor.conversations()
    assert not set(alice.visitor.conversations()) & set(bob.conversations())


def test_events_of_anothers_page_are_not_ones_own(alice: Alice, bob: Visitor) -> None:
    """Page sessions are apart: what is sent to Alice's page is not read under her page's name by Bob."""
    assert alice.visitor.join("_load").status_code == 200
    stolen = bob.client.get("/gradio_api/queue/data", params={"session_hash": alice.visitor.page})
    assert stolen.status_code == 403
    assert CANARY not in stolen.text
    assert alice.visitor.call("_load").success


def test_the_administrator_may_read_but_not_speak_for_others(
    live: Served, alice: Alice, visit: Callable[[], Visitor]
) -> None:
    """What `authorize` says: an administrator reads and deletes; nobody writes into another's conversation or rates for them."""
    admin = visit()
    admin.become_admin(live.token)
    assert CANARY in ATTEMPTS["_wake"](admin, alice.conversation, alice.answer).text
    before = rows(live.home, alice.conversation)
    for handler in ("_ask", "_act", "_rename", "_rate"):
        assert ATTEMPTS[handler](admin, alice.conversation, alice.answer).error == ABSENT
    assert rows(live.home, alice.conversation) == before


def test_a_plugin_for_administrators_is_theirs(live: Served, bob: Visitor) -> None:
    """A customer cannot call it by its command, and is not told that it exists."""
    _, outcome = bob.ask("/vault open")
    assert "the vault is open" not in outcome.text
    assert "There is no plugin /vault here" in outcome.text
    assert "/vault" not in outcome.text.partition("These are")[2].partition("</p>")[0]


@pytest.mark.parametrize(
    "clicked", ["{answer} 1", "{answer} -1", "{answer}", "{answer} x", "{answer} 99999999999", "", "x 0"]
)
def test_an_action_that_was_not_offered_is_none(live: Served, alice: Alice, clicked: str) -> None:
    """SEC-10: only what the plugin offered in that answer can be clicked, whatever the request says."""
    before = rows(live.home, alice.conversation)
    with Visitor(live.address) as again:
        again.client.cookies = alice.visitor.client.cookies
        outcome = again.call("_act", clicked.format(answer=alice.answer))
    assert outcome.error in ("That answer offers no such action. Reload the page.", ABSENT)
    assert rows(live.home, alice.conversation) == before


def test_ids_cannot_be_guessed() -> None:
    """At least 122 random bits, from the system's generator, in the form the routes expect."""
    ids = {new_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    for identifier in ids:
        assert uuid.UUID(identifier).version == 4
        assert re.fullmatch("[0-9a-f]{32}", identifier)
    ones = [sum(int(identifier, 16) >> bit & 1 for identifier in ids) for bit in range(128)]
    # Every bit but the six that say "version 4" is a coin: 5,000 +- 5 standard deviations.
    assert sum(4750 < count < 5250 for count in ones) >= 122


def test_many_guesses_find_nothing(bob: Visitor) -> None:
    """A thousand guessed ids, none of them anybody's."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: bob.client.get(f"/files/{new_id()}").status_code, range(500)))
        found += pool.map(
            lambda _: bob.client.get("/events", params={"conversation": new_id()}).status_code, range(500)
        )
    assert set(found) == {404}
