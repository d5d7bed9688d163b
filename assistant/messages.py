"""The values that travel: what is asked, what is answered, and the closed union of events an answer is made of.

Everything here is frozen and imports nothing of ours but who asks. An event has one log form, JSON with a `type`; the
same validation guards what a plugin yields and what is read back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic import JsonValue as JsonValue

from assistant.identity import Identity

Probability: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Cell: TypeAlias = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a text, `text[start:end]` in characters, with what it is and how sure that is."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    label: str
    score: Probability = 1.0


@dataclass(frozen=True, slots=True)
class Label:
    """One class of a classification with its probability."""

    name: str
    score: Probability


@dataclass(frozen=True, slots=True)
class Source:
    """A passage an answer rests on; `score` is P(this passage answers the question)."""

    id: str
    title: str
    passage: str
    score: Probability
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A follow-up request to click: `text` is sent to `plugin` ("" lets the router decide)."""

    label: str
    text: str
    plugin: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A named, authorized, idempotent thing that a person clicks and that text can never trigger."""

    name: str
    label: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    confirm: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Markdown to append to the answer; consecutive ones are one text to the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Entities:
    """Spans found in `text`, and the model (`name@version`) that found them."""

    text: str
    spans: tuple[Span, ...]
    model: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """A ranked classification, best first."""

    labels: tuple[Label, ...]
    model: str = ""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the answer rests on, best first, at `sequence` of the knowledge base and answering from `threshold` up."""

    sources: tuple[Source, ...]
    threshold: Probability = 0.0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values under column headings; every row has a cell for each column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """Follow-up requests to click; with `hold` the next message of this conversation goes to this plugin."""

    prompt: str
    choices: tuple[Choice, ...] = ()
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Actions:
    """Things a person may click."""

    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """The live row of a job: state, progress and result are read when it is shown."""

    id: str


@dataclass(frozen=True, slots=True)
class File:
    """A file for the reader to keep. A plugin gives `data`; the log keeps the bytes apart, under `id`."""

    name: str
    media_type: str = "application/octet-stream"
    data: bytes = b""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long answer is: `fraction` in [0, 1], or None when that is not known."""

    text: str
    fraction: Probability | None = None


@dataclass(frozen=True, slots=True)
class Handoff:
    """A person should take over, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer broke off. Made by the host alone; `reference` finds the traceback in the program's log."""

    message: str
    reference: str = ""


Event: TypeAlias = (
    Text | Entities | Labels | Sources | Table | Choices | Actions | Job | File | Progress | Handoff | Failure
)
EVENTS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in get_args(Event)}


_adapters: dict[str, TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Made at first use: building all of them would be most of the package's import time."""
    found = _adapters.get(kind.__name__)
    if found is None:
        found = _adapters[kind.__name__] = TypeAdapter(kind)
    return found


def to_log(event: Event) -> dict[str, Any]:
    """The log form of `event`: JSON values with its kind under `type`.

    Raises `ValueError` where a field holds something else than its type says (a plugin can build anything).
    """
    kind = type(event)
    if EVENTS.get(kind.__name__.lower()) is not kind:
        raise ValueError(f"expected an event ({', '.join(EVENTS)}), found {kind.__name__}")
    if isinstance(event, File):
        event = replace(event, data=b"")
    adapter = _adapter(kind)
    try:
        body = adapter.dump_python(event, mode="json", warnings=False)
        adapter.validate_python(body)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{kind.__name__}: expected Unicode text, found half of a character (a lone surrogate)"
        ) from None
    except (ValidationError, RecursionError) as error:
        raise ValueError(f"{kind.__name__}: {_first(error)}") from None
    except ValueError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
    if isinstance(event, Table) and any(len(row) != len(event.columns) for row in event.rows):
        raise ValueError(f"Table: expected {len(event.columns)} cells in every row")
    if isinstance(event, Entities) and any(not s.start < s.end <= len(event.text) for s in event.spans):
        raise ValueError(f"Entities: expected spans inside the text of {len(event.text)} characters")
    return {"type": kind.__name__.lower(), **body}


def from_log(form: Mapping[str, Any]) -> Event:
    """The event that `form` is the log form of; `ValueError` names what does not fit."""
    body = dict(form)
    name = body.pop("type", None)
    if name not in EVENTS:
        raise ValueError(f"expected an event type ({', '.join(EVENTS)}), found {name!r}")
    try:
        event: Event = _adapter(EVENTS[name]).validate_python(body)
    except ValidationError as error:
        raise ValueError(f"{name}: {_first(error)}") from None
    return event


def checked(event: Event) -> Event:
    """The event as its log form gives it back: what a plugin yields may be of any type, and hold anything.

    Raises `ValueError` for what is no event, and for a `Failure`, which the host alone makes.
    """
    if type(event) is Failure:
        raise ValueError("only the host makes a Failure; raise UserError with a sentence for the reader instead")
    valid = from_log(to_log(event))
    if isinstance(valid, File) and isinstance(event, File):
        if not isinstance(event.data, bytes):
            raise ValueError(f"File: expected data to be bytes, found {type(event.data).__name__}")
        return replace(valid, data=event.data)
    return valid


def _first(error: BaseException) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


@dataclass(frozen=True, slots=True)
class Message:
    """One thing said in a conversation: by the `user`, the `assistant`, or an `agent` of the team."""

    role: Literal["user", "assistant", "agent"]
    text: str


@dataclass(frozen=True, slots=True)
class Understanding:
    """What the default models read in the user's message; None where no model is in place."""

    entities: Entities | None = None
    intent: Labels | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Which plugin answers, by which rule (`reason`), and how sure that was."""

    plugin: str
    reason: Literal["explicit", "command", "floor", "guess", "fallback"]
    score: Probability = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One message for a plugin to answer.

    `state` is this plugin's own JSON in this conversation: change it in place, it is committed with the turn.
    `deadline` is a `time.monotonic()` value in seconds; `cancelled` is set when nobody waits for the answer any more.
    """

    id: str
    conversation: str
    identity: Identity
    text: str
    locale: str = "en"
    history: tuple[Message, ...] = ()
    understanding: Understanding = field(default_factory=Understanding)
    state: dict[str, JsonValue] = field(default_factory=dict)
    deadline: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """What somebody sent, before anything was done with it.

    `conversation` "" begins a new one; `plugin` "" lets the router choose; the same `key` again in a conversation is the
    same message, sent twice. `action` is what a person clicked; only `Assistant.act` sets it, from the log.
    """

    text: str
    identity: Identity
    conversation: str = ""
    plugin: str = ""
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    locale: str = "en"
    key: str = ""
    action: Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A finished answer, collected."""

    conversation: str
    turn: str
    route: Route
    events: tuple[Event, ...]
    state: Literal["pending", "streaming", "done", "failed", "stopped"] = "done"

    @property
    def text(self) -> str:
        """The answer's Markdown."""
        return "".join(event.text for event in self.events if isinstance(event, Text))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source the answer names, best first."""
        return tuple(s for event in self.events if isinstance(event, Sources) for s in event.sources)
