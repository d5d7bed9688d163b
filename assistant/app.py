"""The assistant: the only place where its parts are put together, and the way every message takes through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from assistant.chatlog import Begun, Conversation, Entry, Log
from assistant.errors import UserError
from assistant.host import Host, Listener
from assistant.identity import Identity, authorize
from assistant.knowledge.library import Library
from assistant.messages import (
    Actions,
    Event,
    Incoming,
    Reply,
    Route,
    Text,
)
from assistant.models.store import Store
from assistant.normalise import normalised
from assistant.registry import AnyPlugin, Registry
from assistant.router import Router
from assistant.settings import Settings
from assistant.storage import Database
from assistant.turns import LiveTurn, Snapshot

UPDATES_PER_SECOND = 8
LOGGED_SECONDS = 30.0


class Assistant:
    """Routes, opens once, limits, isolates, logs. `home` is the state folder, `plugins` come before those that are found."""

    def __init__(self, home: Path, settings: Settings, *, plugins: Sequence[type[AnyPlugin]] = ()) -> None:
        home = state_folder(home)
        self.home = home
        self.settings = settings
        self.database = Database.at(home)
        self.log = Log(self.database)
        self.models = Store(home, self.database)
        self.knowledge = Library(home, self.database, self.models, settings.knowledge)
        services = {"knowledge": self.knowledge, "models": self.models, "log": self.log}
        self.registry = Registry.load(settings.plugins, services, given=plugins)
        built = {name: loaded.plugin for name, loaded in self.registry.loaded.items()}
        router = Router(built, settings.plugins.fallback, self.models, settings.knowledge.embedder)
        self.log.sweep()
        self._host = Host(self.log, router, built, settings)

    def plugins_for(self, identity: Identity) -> list[AnyPlugin]:
        """The plugins that `identity` may call."""
        authorize(identity, "plugin.list")
        return [loaded.plugin for loaded in self.registry.loaded.values() if identity.role >= loaded.plugin.role]

    def submit(self, incoming: Incoming) -> Begun:
        """Commit the message and start to answer it; returns as soon as the message is on the disk."""
        identity = incoming.identity
        text = normalised(incoming.text, limit=self.settings.server.max_text)
        self._host.refuse_when_busy()
        if incoming.conversation:
            authorize(identity, "conversation.write", self.log.conversation(incoming.conversation).owner)
        else:
            authorize(identity, "conversation.create")
        begun = self.log.begin(incoming, text)
        if not begun.repeated:
            self._host.start(begun, incoming, text)
        return begun

    def act(self, identity: Identity, message: str, position: int, *, locale: str = "en") -> Begun:
        """Do the action that an answer offered at `position`, as the next turn of its conversation.

        What is done is read from the log, never from the caller. Clicked again, it gives the turn it gave before.
        """
        conversation, entry = self.log.entry(message)
        authorize(identity, "action.run", self.log.conversation(conversation).owner)
        offered = [a for event in entry.events if isinstance(event, Actions) for a in event.actions]
        if entry.route is None or not 0 <= position < len(offered):
            raise UserError("That answer offers no such action. Reload the page.")
        action = offered[position]
        return self.submit(
            Incoming(
                text=action.label,
                identity=identity,
                conversation=conversation,
                plugin=entry.route.plugin,
                locale=locale,
                key=f"{message[:48]}:{position}",
                action=action,
            )
        )

    def look(self, identity: Identity, turn: str) -> tuple[int, Snapshot]:
        """The answer as it is now, with a version that grows while this process makes it."""
        live = self._host.live(turn)
        if live is not None:
            authorize(identity, "conversation.read", live.owner)
            return _seen(live)
        conversation, entry = self.log.entry(turn)
        authorize(identity, "conversation.read", self.log.conversation(conversation).owner)
        return len(entry.events), _snapshot(conversation, entry)

    def follow(self, identity: Identity, turn: str, *, interval: float = 1 / UPDATES_PER_SECOND) -> Iterator[Snapshot]:
        """The answer as it grows, at most one snapshot every `interval` seconds, the last one final.

        Leaving the loop early ends nothing: the answer goes on and another reader may follow it.
        """
        live = self._host.live(turn)
        if live is None:
            yield from self._follow_log(identity, turn)
            return
        authorize(identity, "conversation.read", live.owner)
        while True:
            version, snapshot = _seen(live)
            yield snapshot
            if snapshot.over:
                return
            shown = time.monotonic()
            live.wait(version, 15.0)
            if live.snapshot()[1].over:
                continue
            time.sleep(max(0.0, interval - (time.monotonic() - shown)))

    def _follow_log(self, identity: Identity, turn: str) -> Iterator[Snapshot]:
        """Follow an answer that another process makes, or that is over."""
        while True:
            snapshot = self.look(identity, turn)[1]
            yield snapshot
            if snapshot.over:
                return
            self.log.sweep()
            time.sleep(0.5)

    def stream(self, incoming: Incoming) -> Iterator[Event]:
        """The events of the answer as they come; a text is yielded piece by piece."""
        begun = self.submit(incoming)
        before: tuple[Event, ...] = ()
        for snapshot in self.follow(incoming.identity, begun.answer, interval=0.02):
            yield from _news(before, snapshot.events)
            before = snapshot.events

    def ask(self, incoming: Incoming) -> Reply:
        """The finished answer."""
        begun = self.submit(incoming)
        for snapshot in self.follow(incoming.identity, begun.answer):
            last = snapshot
        return Reply(
            conversation=begun.conversation,
            turn=begun.answer,
            route=last.route or Route("", "fallback", 0.0),
            events=last.events,
            state=last.state,
        )

    def stop(self, identity: Identity, turn: str) -> bool:
        """Break an answer off at once; what was streamed stays. False where it was over already."""
        live = self._host.live(turn)
        if live is None:
            return False
        authorize(identity, "conversation.write", live.owner)
        return self._host.stop(live)

    def running(self, identity: Identity, conversation: str) -> str:
        """The id of the answer that is being made in the conversation, or ""."""
        authorize(identity, "conversation.read", self.log.conversation(conversation).owner)
        return self._host.running(conversation)

    def listen(self, identity: Identity, conversation: str, listener: Listener) -> Callable[[], None]:
        """Be told when an answer starts or ends in the conversation; returns how to stop that."""
        authorize(identity, "conversation.read", self.log.conversation(conversation).owner)
        return self._host.listen(conversation, listener)

    def conversations(self, identity: Identity) -> tuple[Conversation, ...]:
        """The caller's own conversations, the last used first."""
        authorize(identity, "conversation.list")
        return self.log.conversations(identity.id)

    def entries(self, identity: Identity, conversation: str) -> tuple[Entry, ...]:
        """The messages that the conversation shows."""
        authorize(identity, "conversation.read", self.log.conversation(conversation).owner)
        return self.log.entries(conversation)

    def rename(self, identity: Identity, conversation: str, title: str) -> None:
        """Give a conversation of the caller another title."""
        authorize(identity, "conversation.write", self.log.conversation(conversation).owner)
        self.log.rename(conversation, title)

    def delete(self, identity: Identity, conversation: str) -> None:
        """Take a conversation out of every list; an answer on its way in it is stopped."""
        authorize(identity, "conversation.delete", self.log.conversation(conversation).owner)
        live = self._host.live(self._host.running(conversation))
        if live is not None:
            self._host.stop(live)
        self.log.delete(conversation)

    def rate(self, identity: Identity, message: str, value: int, *, reason: str = "", comment: str = "") -> None:
        """Keep the caller's thumb on an answer: 1, -1, or 0 to take it back."""
        conversation, entry = self.log.entry(message)
        authorize(identity, "feedback.write", self.log.conversation(conversation).owner)
        if entry.role == "user" or value not in (-1, 0, 1):
            raise UserError("A thumb goes up or down, on an answer.")
        self.log.rate(message, identity.id, value, reason=reason, comment=comment)

    def file(self, identity: Identity, file: str) -> tuple[str, str, bytes]:
        """(name, media type, bytes) of a file that an answer gave."""
        owner, name, media_type, data = self.log.file(file)
        authorize(identity, "file.read", owner)
        return name, media_type, data

    def finish(self) -> None:
        """Take no more questions, let answers end, close the plugins; what is logged can still be read."""
        self._host.close()

    def close(self) -> None:
        """`finish`, then commit everything and let go of the files."""
        self.finish()
        self.knowledge.close()
        self.models.close()
        self.database.close()


def state_folder(home: Path) -> Path:
    """The state folder, made where it is not there, readable by its owner alone."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = f"{home}: expected a folder for the state, found: {error.strerror}. Give another --home."
        raise UserError(reason) from None
    return home


def _seen(live: LiveTurn) -> tuple[int, Snapshot]:
    """The answer so far; its end only when that is on the disk, for then a reader may ask on or close the program."""
    version, snapshot = live.snapshot()
    if snapshot.over:
        live.logged.wait(LOGGED_SECONDS)
    return version, snapshot


def _news(before: tuple[Event, ...], events: tuple[Event, ...]) -> Iterator[Event]:
    """What is new in `events`; only the last event of an answer ever grows or is replaced."""
    for position, event in enumerate(events):
        old = before[position] if position < len(before) else None
        if isinstance(event, Text) and isinstance(old, Text):
            if event.text != old.text:
                yield Text(event.text[len(old.text) :])
        elif event is not old:
            yield event


def _snapshot(conversation: str, entry: Entry) -> Snapshot:
    return Snapshot(conversation=conversation, turn=entry.id, state=entry.state, events=entry.events, route=entry.route)
