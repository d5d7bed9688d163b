"""The chat log's statements, built once: building one costs more than running it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, insert, literal, select, update

from assistant.identity import new_id
from assistant.schema import conversations, feedback, messages, states
from assistant.storage import now

HISTORY = 50
"""How many messages before the question a plugin is given."""
LEASE_SECONDS = 30.0
"""How long an answer counts as being made after its process last said so."""

_LIGHT = ("id", "parent", "role", "text", "state", "lease_holder", "lease_until")
CONVERSATION = select(conversations).where(conversations.c.id == bindparam("id"), conversations.c.deleted.is_(False))
BRANCH = select(messages).where(messages.c.conversation == bindparam("conversation")).order_by(messages.c.seq)
_REPLY = messages.alias("reply")
SENT = (
    select(messages.c.id.label("question"), _REPLY.c.id.label("answer"))
    .join(_REPLY, _REPLY.c.parent == messages.c.id)
    .where(
        messages.c.conversation == bindparam("conversation"),
        messages.c.idempotency_key == bindparam("key"),
        _REPLY.c.conversation == messages.c.conversation,
    )
)
CREATE = insert(conversations)
SAY = insert(messages)
STATES = select(states.c.plugin, states.c.value).where(states.c.conversation == bindparam("conversation"))
_BASE = (
    select(*(messages.c[name] for name in _LIGHT), literal(1).label("depth"))
    .where(messages.c.id == bindparam("head"))
    .cte("newest", recursive=True)
)
_NEWEST = _BASE.union_all(
    select(*(messages.c[name] for name in _LIGHT), _BASE.c.depth + 1).where(
        messages.c.id == _BASE.c.parent, _BASE.c.depth < HISTORY
    )
)
# From the head along the parents, newest first; however long a conversation is, this stays small.
RECENT = select(_NEWEST).order_by(_NEWEST.c.depth)
UNFINISHED = select(messages).where(messages.c.state.in_(("pending", "streaming")))
STATE = select(states.c.value).where(
    states.c.conversation == bindparam("conversation"), states.c.plugin == bindparam("plugin")
)
THUMBS = (
    select(feedback.c.message, feedback.c.value)
    .join(messages, messages.c.id == feedback.c.message)
    .where(messages.c.conversation == bindparam("conversation"), feedback.c.author == bindparam("author"))
)
TOUCH = (
    update(conversations)
    .where(conversations.c.id == bindparam("key"))
    .values({name: bindparam(name) for name in ("head", "floor", "title", "updated")})
)
FLOOR = update(conversations).where(conversations.c.id == bindparam("key")).values(floor=bindparam("floor"))
ANSWER = (  # only while it is unfinished: a checkpoint that comes late must not undo the end
    update(messages)
    .where(messages.c.id == bindparam("key"), messages.c.state.in_(("pending", "streaming")))
    .values({name: bindparam(name) for name in ("text", "events", "state", "lease_until")})
)
FINISH = (
    update(messages)
    .where(messages.c.id == bindparam("key"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "text", "events", "state", "plugin", "options", "route", "timings", "knowledge_sequence", "threshold",
            )
        }
        | {"lease_holder": None, "lease_until": None}
    )
)  # fmt: skip
RENEW = update(messages).where(messages.c.id == bindparam("key")).values(lease_until=bindparam("until"))

_EMPTY: dict[str, Any] = dict.fromkeys(
    ("input", "raw_digest", "idempotency_key", "lease_holder", "lease_until", "locale", "parent")
)


def say(connection: Connection, said: dict[str, Any], ids: tuple[str | None, str, str], process: str) -> None:
    """Insert a question and its pending answer; `ids` are those of the message before, the question and the answer."""
    before, question, answer = ids
    until = now() + LEASE_SECONDS
    shared = _EMPTY | {"conversation": said["conversation"], "locale": said["locale"], "created": now()}
    asked = {"id": question, "parent": before, "role": "user", "input": said["text"], "state": "done"}
    pending = {
        "id": answer,
        "parent": question,
        "role": "assistant",
        "author": "assistant",
        "text": "",
        "state": "pending",
    }
    leased = {"lease_holder": process, "lease_until": until}
    connection.execute(SAY, [shared | said | asked, shared | pending | leased])


def create(connection: Connection, owner: str, locale: str, title: str = "", head: str | None = None) -> str:
    """Insert a conversation and return its id."""
    row: dict[str, Any] = {"id": new_id(), "owner": owner, "title": title, "locale": locale, "head": head}
    connection.execute(CREATE, row | {"created": now(), "updated": now()})
    return str(row["id"])
