"""One answer in the making: what was streamed so far, who waits for it, and how it ends.

The plugin's thread adds events; readers wait for a newer version and take a snapshot; whoever ends the turn first
(the plugin, Stop, the deadline, the output limit) decides how it ended. Nothing is queued, so a slow reader holds nobody up and a
vanished one costs nothing; memory is bounded by the output limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from assistant.chatlog import Begun, State
from assistant.errors import UserError
from assistant.messages import Event, Failure, Progress, Route, Text, checked
from assistant.plugin import Plugin

CUT = "\n\n*The answer is longer than it may be and was cut here.*"
OVER = ("done", "failed", "stopped")


class TurnOver(Exception):
    """Nobody waits for this answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An answer as far as it is: `state` done, failed or stopped means that nothing more will come."""

    conversation: str
    turn: str
    state: State
    events: tuple[Event, ...]
    route: Route | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in OVER


@dataclass
class LiveTurn:
    """The answer that one thread of this process makes."""

    begun: Begun
    owner: str
    deadline: float  # time.monotonic()
    max_bytes: int
    cancelled: threading.Event = field(default_factory=threading.Event)
    state: State = "pending"
    route: Route | None = None
    started: float = field(default_factory=time.monotonic)
    first_event: float = 0.0
    saved_version: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    file_bytes: int = 0
    logged: threading.Event = field(default_factory=threading.Event)  # its end is on the disk

    def __post_init__(self) -> None:
        self._events: list[Event] = []
        self._bytes = 0
        self._version = 0
        self._changed = threading.Condition()

    def add(self, event: Event) -> None:
        """Take a checked event from the plugin; `TurnOver` when nobody waits for it or the answer got too long."""
        size = len(event.text.encode()) if isinstance(event, Text) else len(repr(event))
        with self._changed:
            self._refuse_when_over()
            room = self.max_bytes - self._bytes
            self._bytes += max(1, size)  # empty ones count: there may be no end of them
            self.first_event = self.first_event or time.monotonic()
            self.state = "streaming"
            if self._bytes <= self.max_bytes:
                self._append(event)
                return
            if isinstance(event, Text):
                self._append(Text(event.text.encode()[:room].decode(errors="ignore")))
            self._append(Text(CUT))
        self.cancelled.set()
        raise TurnOver

    def refuse_when_over(self) -> None:
        """Raise `TurnOver` when nobody waits for the answer any more."""
        with self._changed:
            self._refuse_when_over()

    def routed(self, route: Route) -> None:
        """Make the route known to the readers."""
        with self._changed:
            self.route = route
            self._bump()

    def end(self, state: State, failure: Failure | None = None) -> bool:
        """End the turn; False where it had ended already. Only the caller that gets True writes the log."""
        with self._changed:
            if self.state in OVER:
                return False
            self._events = [event for event in self._events if not isinstance(event, Progress)]
            if failure is not None:
                self._append(failure)
            self.state = state
            self._bump()
        if state != "done":
            self.cancelled.set()
        return True

    def snapshot(self) -> tuple[int, Snapshot]:
        """The version, and what the answer is at it."""
        with self._changed:
            return self._version, Snapshot(
                conversation=self.begun.conversation,
                turn=self.begun.answer,
                state=self.state,
                events=tuple(self._events),
                route=self.route,
            )

    def wait(self, version: int, timeout: float) -> None:
        """Return when there is something newer than `version`, or after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)

    def _refuse_when_over(self) -> None:
        if self.state in OVER or self.cancelled.is_set():
            raise TurnOver

    def _append(self, event: Event) -> None:
        if self._events and isinstance(self._events[-1], Progress):
            self._events.pop()
        last = self._events[-1] if self._events else None
        if isinstance(event, Text) and isinstance(last, Text):
            self._events[-1] = Text(last.text + event.text)
        else:
            self._events.append(event)
        self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._changed.notify_all()


class Gate:
    """In front of one plugin: opens it once, limits how many answers it makes at a time, and counts those that hang."""

    MAX_STUCK = 2

    def __init__(self, plugin: Plugin[Any]) -> None:
        self.plugin = plugin
        self._lock = threading.Lock()
        self._opened = False
        self._slots = threading.BoundedSemaphore(plugin.max_concurrency)
        self._stuck: set[int] = set()

    def enter(self, turn: LiveTurn) -> None:
        """Wait for a free slot, and open the plugin if nobody did; `UserError` where it is suspended or stays busy."""
        if len(self._stuck) >= self.MAX_STUCK:
            raise UserError(
                f"The plugin {self.plugin.name} is suspended: {len(self._stuck)} of its answers did not stop when told to. "
                "Ask another one, or restart the program."
            )
        while not self._slots.acquire(timeout=0.25):
            if turn.cancelled.is_set():
                raise TurnOver
        try:
            with self._lock:
                if not self._opened:
                    self.plugin.open()
                    self._opened = True
            turn.refuse_when_over()  # opening may have taken longer than anybody waited
        except BaseException:
            self._slots.release()
            raise

    def leave(self) -> None:
        """Give the slot back; the thread that entered calls it when the plugin really has ended."""
        self._stuck.discard(threading.get_ident())
        self._slots.release()

    def hangs(self, thread: int) -> None:
        """Note that this thread goes on although its turn is over."""
        self._stuck.add(thread)

    def close(self) -> None:
        """Close the plugin if it was opened; one that is still opening is left to the end of the process."""
        if not self._lock.acquire(timeout=0.25):
            return
        try:
            if self._opened:
                self._opened = False
                self.plugin.close()
        finally:
            self._lock.release()


def drain_into(answer: Iterable[Event], take: Callable[[Event], None]) -> None:
    """Give every event of a plugin's answer to `take`, in its log form's words; a generator is closed in any case.

    Raises `ValueError` where the answer is no stream of events.
    """
    if isinstance(answer, str | bytes) or not isinstance(answer, Iterable):
        raise ValueError(f"expected handle to yield or return events, found {type(answer).__name__}")
    try:
        for event in answer:
            take(checked(event))
    finally:
        close = getattr(answer, "close", None)
        if close is not None:
            close()
