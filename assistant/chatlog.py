"""The chat log: conversations and their turns, committed before and after a plugin runs.

Turns are a tree (`parent`), and `head` is the end of the branch that is shown; nothing is overwritten. An answer is a row
that goes pending -> streaming -> done, failed or stopped, under a lease of the process that makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, Row, insert, select, update

from assistant import queries
from assistant.errors import Forbidden, UserError
from assistant.identity import ABSENT, Identity, new_id
from assistant.messages import Event, Failure, Incoming, Message, Progress, Route, Text, from_log, to_log
from assistant.schema import conversations, feedback, files, messages, predictions, states
from assistant.storage import Database, is_alive, now, process_name, upsert

State: TypeAlias = Literal["pending", "streaming", "done", "failed", "stopped"]
RESTARTED = "The program was stopped while it answered. Ask again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation as a list shows it; times are seconds since 1970."""

    id: str
    owner: str
    title: str
    locale: str
    updated: float
    floor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message of a conversation's current branch as it is logged."""

    id: str
    role: Literal["user", "assistant", "agent"]
    author: str
    text: str
    state: State = "done"
    events: tuple[Event, ...] = ()
    route: Route | None = None
    feedback: int = 0
    knowledge_sequence: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A turn whose question is on the disk: the ids of both messages, and the last that was said before."""

    conversation: str
    question: str
    answer: str
    history: tuple[Message, ...]
    floor: str = ""
    states: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # each plugin's own JSON in this conversation
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one model version read in a user's message."""

    kind: Literal["entities", "intent"]
    model: str
    version: str
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All that an answer leaves behind, written in one transaction."""

    state: State
    events: Sequence[Event]
    plugin: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    route: Route | None = None
    floor: str = ""
    plugin_state: Mapping[str, Any] | None = None
    knowledge_sequence: int | None = None
    threshold: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    predictions: Sequence[Prediction] = ()


class Log:
    """Reads and writes conversations; who may do so is the caller's question."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = process_name()

    def create(self, identity: Identity, *, title: str = "", locale: str = "en") -> Conversation:
        """A new, empty conversation of `identity`."""
        made = self._database.write(lambda c: queries.create(c, identity.id, locale, title))
        return self.conversation(made)

    def conversation(self, conversation: str) -> Conversation:
        """The conversation of that id; `Forbidden` where there is none or it was deleted."""
        with self._database.read() as connection:
            return _conversation(connection, conversation)

    def conversations(self, owner: str, *, limit: int = 200) -> tuple[Conversation, ...]:
        """The owner's conversations, the last used first."""
        query = (
            select(conversations)
            .where(conversations.c.owner == owner, conversations.c.deleted.is_(False))
            .order_by(conversations.c.updated.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return tuple(_as_conversation(row) for row in connection.execute(query))

    def rename(self, conversation: str, title: str) -> None:
        """Give the conversation another title."""
        title = " ".join(title.split())[:120]
        if not title:
            raise UserError("A title needs at least one letter. Type one.")
        self._database.write(lambda c: _set(c, conversation, title=title))

    def delete(self, conversation: str) -> None:
        """Take the conversation out of every list; its rows stay until they are erased."""
        self._database.write(lambda c: _set(c, conversation, deleted=True, updated=now()))

    def begin(self, incoming: Incoming, text: str) -> Begun:
        """Commit the question, whose normalised form is `text`, and a pending answer, in one transaction.

        The same `key` again gives the turn it gave before. Raises `UserError` where the conversation still has an
        answer on its way.
        """
        values = {
            "locale": incoming.locale,
            "idempotency_key": incoming.key or None,
            "author": incoming.identity.id,
            "raw_digest": hashlib.sha256(incoming.text.encode(errors="surrogatepass")).hexdigest(),
        }
        return self._database.write(lambda c: self._begin(c, incoming.conversation, text, values))

    def _begin(self, connection: Connection, conversation: str, text: str, values: dict[str, Any]) -> Begun:
        question, answer, title = new_id(), new_id(), " ".join(text.split())[:60]
        if not conversation:
            conversation = queries.create(connection, values["author"], values["locale"], title, answer)
            queries.say(
                connection,
                values | {"conversation": conversation, "text": text},
                (None, question, answer),
                self._process,
            )
            return Begun(conversation=conversation, question=question, answer=answer, history=())
        row = _conversation_row(connection, conversation)
        if key := values["idempotency_key"]:
            sent = connection.execute(queries.SENT, {"conversation": conversation, "key": key}).one_or_none()
            if sent is not None:
                return Begun(
                    conversation=conversation, question=sent.question, answer=sent.answer, history=(), repeated=True
                )
        branch = connection.execute(queries.RECENT, {"head": row.head}).all()[::-1]
        if branch and branch[-1].state in ("pending", "streaming") and not self._is_left(branch[-1]):
            raise UserError("The last question of this conversation is still being answered. Wait for it, or stop it.")
        states = connection.execute(queries.STATES, {"conversation": conversation}).all()
        queries.say(
            connection,
            values | {"conversation": conversation, "text": text},
            (row.head, question, answer),
            self._process,
        )
        touched = {"key": conversation, "head": answer, "floor": None, "title": row.title or title, "updated": now()}
        connection.execute(queries.TOUCH, touched)
        return Begun(
            conversation=conversation,
            question=question,
            answer=answer,
            history=tuple(Message(m.role, m.text) for m in branch if m.text),
            floor=row.floor or "",
            states={state.plugin: state.value for state in states},
        )

    def checkpoint(self, answer: str, events: Sequence[Event]) -> None:
        """Put what was streamed so far on the disk and renew the lease, so that a kill loses little of a long answer."""
        values = _answer(events) | {"state": "streaming", "lease_until": now() + queries.LEASE_SECONDS}
        self._database.write(lambda c: c.execute(queries.ANSWER, {**values, "key": answer}))

    def finish(self, begun: Begun, finished: Finished) -> None:
        """Commit the answer with all that belongs to it."""
        self._database.write(lambda c: self._finish(c, begun, finished))

    def _finish(self, connection: Connection, begun: Begun, finished: Finished) -> None:
        route = finished.route
        values = _answer(finished.events) | {
            "key": begun.answer,
            "state": finished.state,
            "plugin": finished.plugin or None,
            "options": dict(finished.options) or None,
            "route": {"plugin": route.plugin, "reason": route.reason, "score": route.score} if route else None,
            "timings": dict(finished.timings),
            "knowledge_sequence": finished.knowledge_sequence,
            "threshold": finished.threshold,
        }
        connection.execute(queries.FINISH, values)
        if finished.floor:
            connection.execute(queries.FLOOR, {"key": begun.conversation, "floor": finished.floor})
        if finished.plugin_state is not None:
            value = {
                "conversation": begun.conversation,
                "plugin": finished.plugin,
                "value": dict(finished.plugin_state),
            }
            upsert(connection, states, value, keys=("conversation", "plugin"))
        if finished.predictions:
            rows = [
                {
                    "message": begun.question,
                    "kind": p.kind,
                    "model": p.model,
                    "version": p.version,
                    "value": dict(p.value),
                    "created": now(),
                }
                for p in finished.predictions
            ]
            connection.execute(insert(predictions), rows)

    def entries(self, conversation: str) -> tuple[Entry, ...]:
        """The messages of the branch that is shown, oldest first, with the owner's thumbs."""
        with self._database.read() as connection:
            head = _conversation_row(connection, conversation)
            branch = _branch(connection.execute(queries.BRANCH, {"conversation": conversation}).all(), head.head)
            thumbs = connection.execute(queries.THUMBS, {"conversation": conversation, "author": head.owner}).all()
        values = {row.message: row.value for row in thumbs}
        return tuple(self._entry(row, values.get(row.id, 0)) for row in branch)

    def entry(self, message: str) -> tuple[str, Entry]:
        """The message of that id and the id of its conversation; `Forbidden` where there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(messages).where(messages.c.id == message)).one_or_none()
        if row is None:
            raise Forbidden(ABSENT)
        return row.conversation, self._entry(row, 0)

    def history(self, conversation: str, *, limit: int = 50) -> tuple[Message, ...]:
        """The last `limit` messages of the conversation's current branch, oldest first."""
        return tuple(Message(e.role, e.text) for e in self.entries(conversation)[-limit:] if e.text)

    def state(self, conversation: str, plugin: str) -> dict[str, Any]:
        """The plugin's own JSON in this conversation; empty before it stored any."""
        with self._database.read() as connection:
            found = connection.execute(queries.STATE, {"conversation": conversation, "plugin": plugin}).scalar()
        return dict(found or {})

    def rate(self, message: str, author: str, value: int, *, reason: str = "", comment: str = "") -> None:
        """Keep a thumb: 1 up, -1 down, 0 takes it back; the last one of an author counts."""
        row: dict[str, Any] = {
            "message": message,
            "author": author,
            "value": value,
            "reason": reason[:64],
            "comment": comment[:2000],
        }
        row["created"] = now()
        self._database.write(lambda c: upsert(c, feedback, row, keys=("message", "author")))

    def keep_file(self, conversation: str, owner: str, name: str, content: tuple[str, bytes]) -> str:
        """Store a file's (media type, bytes) for its owner and return its id."""
        media_type, data = content
        row = {
            "id": new_id(), "owner": owner, "conversation": conversation, "name": name, "media_type": media_type,
            "digest": hashlib.sha256(data).hexdigest(), "size": len(data), "data": data, "created": now(),
        }  # fmt: skip
        self._database.write(lambda c: c.execute(insert(files).values(row)))
        return str(row["id"])

    def file(self, file: str) -> tuple[str, str, str, bytes]:
        """(owner, name, media type, bytes) of a stored file."""
        query = select(files.c.owner, files.c.name, files.c.media_type, files.c.data).where(files.c.id == file)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise Forbidden(ABSENT)
        return row.owner, row.name, row.media_type, row.data

    def renew(self, answers: Iterable[str]) -> None:
        """Keep the leases of answers that are still being made."""
        rows = [{"key": answer, "until": now() + queries.LEASE_SECONDS} for answer in answers]
        if rows:
            self._database.write(lambda c: c.execute(queries.RENEW, rows))

    def sweep(self) -> int:
        """Turn answers that nobody makes any more into failed ones, and return how many there were."""
        with self._database.read() as connection:
            left = [row for row in connection.execute(queries.UNFINISHED) if self._is_left(row)]
        if not left:
            return 0
        return self._database.write(lambda c: self._sweep(c))

    def _sweep(self, connection: Connection) -> int:
        left = [row for row in connection.execute(queries.UNFINISHED) if self._is_left(row)]
        for row in left:
            events = [*(e for e in _events(row) if not isinstance(e, Progress)), Failure(RESTARTED)]
            connection.execute(
                queries.ANSWER, _answer(events) | {"key": row.id, "state": "failed", "lease_until": None}
            )
        return len(left)

    def _is_left(self, row: Row[Any]) -> bool:
        """Whether nobody makes this answer any more: its process is gone, or did not renew the lease."""
        if (row.lease_until or 0.0) < now():
            return True
        return row.lease_holder != self._process and is_alive(row.lease_holder) is False

    def _entry(self, row: Row[Any], thumb: int) -> Entry:
        return Entry(
            id=row.id,
            role=row.role,
            author=row.author,
            text=row.text,
            state=row.state,
            events=_events(row),
            route=Route(**row.route) if row.route else None,
            feedback=thumb,
            knowledge_sequence=row.knowledge_sequence,
            timings=row.timings or {},
        )


def _conversation_row(connection: Connection, conversation: str) -> Row[Any]:
    row = connection.execute(queries.CONVERSATION, {"id": conversation}).one_or_none()
    if row is None:
        raise Forbidden(ABSENT)
    return row


def _conversation(connection: Connection, conversation: str) -> Conversation:
    return _as_conversation(_conversation_row(connection, conversation))


def _as_conversation(row: Row[Any]) -> Conversation:
    return Conversation(
        id=row.id, owner=row.owner, title=row.title, locale=row.locale, updated=row.updated, floor=row.floor or ""
    )


def _set(connection: Connection, conversation: str, **values: Any) -> None:
    live = (conversations.c.id == conversation) & conversations.c.deleted.is_(False)
    if connection.execute(update(conversations).where(live).values(values)).rowcount == 0:
        raise Forbidden(ABSENT)


def _branch(rows: Sequence[Row[Any]], head: str | None) -> list[Row[Any]]:
    """The rows from the root to `head`, along the parents."""
    by_id = {row.id: row for row in rows}
    branch = []
    while head is not None and head in by_id:
        branch.append(by_id[head])
        head = by_id[head].parent
    return branch[::-1]


def _answer(events: Sequence[Event]) -> dict[str, Any]:
    return {
        "text": "".join(event.text for event in events if isinstance(event, Text)),
        "events": [to_log(event) for event in events],
    }


def _events(row: Row[Any]) -> tuple[Event, ...]:
    return tuple(from_log(form) for form in row.events or ())
