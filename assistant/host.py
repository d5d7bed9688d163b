"""Runs turns: one thread each, one gate for each plugin, and a keeper for deadlines, checkpoints and leases.

A thread cannot be killed. Stop, the deadline and the output limit act on the answer at once; a plugin that goes on all the
same is counted, and suspended after the second time.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from assistant.chatlog import Begun, Finished, Log, State
from assistant.errors import UserError
from assistant.identity import authorize, call_action
from assistant.messages import Choices, Event, Failure, File, Incoming, Request, Sources, Understanding
from assistant.plugin import Options
from assistant.registry import AnyPlugin
from assistant.router import Router
from assistant.settings import Settings
from assistant.turns import Gate, LiveTurn, TurnOver, drain_into

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 2.0
HOUSEKEEPING_SECONDS = 10.0
CLOSING_SECONDS = 5.0
Listener = Callable[[str, str], None]
"""Called with what happened ("started", "finished") and the turn's id, from any thread; must not block."""


class Host:
    """Makes answers, each in a thread of its own, and writes them to the log."""

    def __init__(self, log: Log, router: Router, plugins: Mapping[str, AnyPlugin], settings: Settings) -> None:
        self._log = log
        self._router = router
        self._settings = settings
        self._gates = {name: Gate(plugin) for name, plugin in plugins.items()}
        self._live: dict[str, LiveTurn] = {}
        self._threads: dict[str, tuple[threading.Thread, Gate | None]] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="turn-keeper", daemon=True)
        self._keeper.start()

    def refuse_when_busy(self) -> None:
        """Raise `UserError` when as many answers are being made as may wait."""
        if self._closing.is_set():
            raise UserError("The program is closing. Ask again in a minute.")
        if len(self._live) >= self._settings.server.max_queue:
            raise UserError("Too many questions are being answered at the moment. Try again in 5 seconds.")

    def start(self, begun: Begun, incoming: Incoming, text: str) -> None:
        """Begin to answer a question that is on the disk."""
        deadline = time.monotonic() + self._settings.turn.timeout_seconds
        turn = LiveTurn(begun, incoming.identity.id, deadline, self._settings.turn.max_output_bytes)
        thread = threading.Thread(target=self._answer, args=(turn, incoming, text), name="turn", daemon=True)
        with self._lock:
            self._live[begun.answer] = turn
            self._threads[begun.answer] = (thread, None)
        thread.start()
        self._wake.set()
        self._tell(turn, "started")

    def live(self, turn: str) -> LiveTurn | None:
        """The answer of that id while this process makes it."""
        with self._lock:
            return self._live.get(turn)

    def stop(self, turn: LiveTurn) -> bool:
        """Break the answer off; what was streamed stays. False where it was over already."""
        return self._end(turn, "stopped")

    def running(self, conversation: str) -> str:
        """The id of the answer that this process is making in the conversation, or ""."""
        with self._lock:
            return next((t.begun.answer for t in self._live.values() if t.begun.conversation == conversation), "")

    def listen(self, conversation: str, listener: Listener) -> Callable[[], None]:
        """Be told when an answer starts or ends in the conversation; returns how to stop that."""
        with self._lock:
            self._listeners.setdefault(conversation, []).append(listener)

        def stop() -> None:
            with self._lock:
                left = self._listeners.get(conversation, [])
                if listener in left:
                    left.remove(listener)
                if not left:
                    self._listeners.pop(conversation, None)

        return stop

    def close(self) -> None:
        """Let answers end for some seconds, mark the rest as failed, close the plugins."""
        self._closing.set()
        until = time.monotonic() + CLOSING_SECONDS
        while self._live and time.monotonic() < until:
            time.sleep(0.02)
        with self._lock:
            left = list(self._live.values())
        for turn in left:
            self._end(turn, "failed", Failure("The program was closed while it answered. Ask again."))
        self._wake.set()
        self._keeper.join()
        for name, gate in self._gates.items():
            try:
                gate.close()
            except BaseException:  # the others are closed all the same
                log.exception("plugin %s could not be closed", name)

    def _answer(self, turn: LiveTurn, incoming: Incoming, text: str) -> None:
        try:
            self._run(turn, incoming, text)
        except TurnOver:
            self._end(turn, "done")  # cut at the output limit; after Stop or the deadline it has ended already
        except UserError as error:
            self._end(turn, "failed", Failure(str(error)))
        except BaseException as error:  # noqa: BLE001 - whatever a plugin raises fails one answer and nothing else
            self._crashed(turn, error)
        finally:
            with self._lock:
                self._threads.pop(turn.begun.answer, None)

    def _run(self, turn: LiveTurn, incoming: Incoming, text: str) -> None:
        route, text = self._router.route(text, incoming.identity, explicit=incoming.plugin, floor=turn.begun.floor)
        turn.routed(route)
        gate = self._gates[route.plugin]
        plugin = gate.plugin
        authorize(incoming.identity, call_action(plugin.role))
        options = _options(plugin, incoming)
        before = turn.begun.states.get(plugin.name, {})
        request = Request(
            id=turn.begun.answer,
            conversation=turn.begun.conversation,
            identity=incoming.identity,
            text=text,
            locale=incoming.locale,
            history=turn.begun.history,
            understanding=Understanding(),
            state=json.loads(json.dumps(before)),
            deadline=turn.deadline,
            cancelled=turn.cancelled,
        )
        gate.enter(turn)
        with self._lock:
            self._threads[turn.begun.answer] = (threading.current_thread(), gate)
        try:
            action = incoming.action
            answer = plugin.handle(request, options) if action is None else plugin.act(action, request)
            drain_into(answer, lambda event: self._take(turn, event))
        finally:
            gate.leave()
        state = _json_object(request.state, plugin.name)
        self._end(turn, "done", options=dict(incoming.options), plugin_state=state if state != before else None)

    def _end(self, turn: LiveTurn, state: State, failure: Failure | None = None, **more: Any) -> bool:
        """End the turn and commit it; the answer is out of `_live` only when the log has it."""
        if not turn.end(state, failure):
            return False
        _, snapshot = turn.snapshot()
        events = snapshot.events
        sources = [event for event in events if isinstance(event, Sources)]
        holds = any(isinstance(event, Choices) and event.hold for event in events)
        plugin = turn.route.plugin if turn.route else ""
        ended = time.monotonic()
        finished = Finished(
            state=snapshot.state,
            events=events,
            plugin=plugin,
            options=more.get("options", {}),
            route=turn.route,
            floor=plugin if holds and state == "done" else "",
            plugin_state=more.get("plugin_state"),
            knowledge_sequence=sources[-1].sequence if sources else None,
            threshold=sources[-1].threshold if sources else None,
            timings={
                "first_event_ms": round(1000 * ((turn.first_event or ended) - turn.started), 2),
                "total_ms": round(1000 * (ended - turn.started), 2),
            },
        )
        try:
            self._log.finish(turn.begun, finished)
        except UserError:
            log.error("an answer could not be written to the log", exc_info=True)
        finally:
            with self._lock:
                self._live.pop(turn.begun.answer, None)
            turn.logged.set()
            self._tell(turn, "finished")
        return True

    def _take(self, turn: LiveTurn, event: Event) -> None:
        turn.add(self._filed(turn, event) if isinstance(event, File) else event)

    def _filed(self, turn: LiveTurn, file: File) -> File:
        """Keep the bytes apart at once: what readers get names a file that is there."""
        turn.refuse_when_over()
        turn.file_bytes += len(file.data)
        limit = self._settings.server.max_upload_mb
        if turn.file_bytes > limit * 1_000_000:
            raise UserError(f"The files of one answer may have {limit} MB together; {file.name} is beyond that.")
        kept = self._log.keep_file(turn.begun.conversation, turn.owner, file.name, (file.media_type, file.data))
        return File(name=file.name, media_type=file.media_type, id=kept)

    def _crashed(self, turn: LiveTurn, error: BaseException) -> None:
        reference = secrets.token_hex(4)
        plugin = turn.route.plugin if turn.route else "router"
        log.error("answer %s of plugin %s failed, reference %s", turn.begun.answer, plugin, reference, exc_info=error)
        self._end(turn, "failed", Failure("Something went wrong with this answer.", reference))

    def _tell(self, turn: LiveTurn, what: str) -> None:
        with self._lock:
            listeners = list(self._listeners.get(turn.begun.conversation, ()))
        for listener in listeners:
            listener(what, turn.begun.answer)

    def _keep(self) -> None:
        """Deadlines every quarter of a second while answers are made, checkpoints every two, leases every ten."""
        swept = time.monotonic()
        while not self._closing.is_set():
            if self._live or self._over_but_running():
                self._closing.wait(0.25)
            else:
                self._wake.wait(HOUSEKEEPING_SECONDS)
                self._wake.clear()
            with self._lock:
                live = list(self._live.values())
            current = time.monotonic()
            for turn in live:
                if current >= turn.deadline:
                    seconds = self._settings.turn.timeout_seconds
                    self._end(
                        turn, "failed", Failure(f"The answer took longer than {seconds:g} seconds and was broken off.")
                    )
                elif current - turn.saved_at >= CHECKPOINT_SECONDS:
                    self._checkpoint(turn)
            self._count_stuck()
            if current - swept >= HOUSEKEEPING_SECONDS:
                swept = current
                self._guarded(lambda: self._log.renew([turn.begun.answer for turn in live]))  # noqa: B023 - called at once
                self._guarded(self._log.sweep)

    def _checkpoint(self, turn: LiveTurn) -> None:
        version, snapshot = turn.snapshot()
        turn.saved_at = time.monotonic()
        if version != turn.saved_version and not snapshot.over:
            turn.saved_version = version
            self._guarded(lambda: self._log.checkpoint(turn.begun.answer, snapshot.events))

    def _over_but_running(self) -> list[tuple[threading.Thread, Gate]]:
        with self._lock:
            return [
                (thread, gate)
                for answer, (thread, gate) in self._threads.items()
                if answer not in self._live and gate is not None
            ]

    def _count_stuck(self) -> None:
        for thread, gate in self._over_but_running():
            if thread.is_alive() and thread.ident is not None:
                gate.hangs(thread.ident)

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception:
            log.warning("housekeeping could not write to the log; it will try again", exc_info=True)


def _options(plugin: AnyPlugin, incoming: Incoming) -> Options:
    try:
        options: Options = plugin.options_type.model_validate(dict(incoming.options))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(plugin.options_type.model_fields) or "none"
        raise UserError(f"Option {name} of {plugin.name}: {problem['msg']}. Its options are: {known}.") from None
    return options


def _json_object(state: dict[str, Any], plugin: str) -> dict[str, Any]:
    try:
        copied: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"plugin {plugin}: expected request.state to hold JSON values, found {error}") from None
    return copied
