"""Actions are done when a person clicks them, once, as they were offered, and never because of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from assistant import Action, Actions, Event, Identity, Options, Plugin, Request, Role, Text
from assistant.errors import Forbidden, UserError
from assistant.testing import Chat


class Desk(Plugin[Options]):
    """Offers to file a note, and files it."""

    name = "desk"
    summary = "Files notes."
    filed: list[str]

    def __init__(self) -> None:
        self.filed = []

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("Shall I file it?")
        yield Actions((Action("discard", "Discard"), Action("file", "File it", {"note": request.text})))

    def act(self, action: Action, request: Request) -> Iterable[Event]:
        self.filed.append(action.arguments.get("note", ""))
        yield Text(f"Done: {action.name}.")


def desk_of(chat: Chat) -> Desk:
    plugin = chat.assistant.registry.loaded["desk"].plugin
    assert isinstance(plugin, Desk)
    return plugin


def finished(chat: Chat, turn: str) -> str:
    *_, last = chat.assistant.follow(chat.identity, turn)
    return "".join(event.text for event in last.events if isinstance(event, Text))


def test_a_click_does_what_was_offered(chat: Callable[..., Chat]) -> None:
    one = chat(Desk)
    offered = one.ask("milk")
    begun = one.assistant.act(one.identity, offered.turn, 1)
    assert finished(one, begun.answer) == "Done: file."
    assert desk_of(one).filed == ["milk"]


def test_a_second_click_is_the_same_turn(chat: Callable[..., Chat]) -> None:
    one = chat(Desk)
    offered = one.ask("milk")
    turns = [one.assistant.act(one.identity, offered.turn, 1) for _ in range(3)]
    assert len({begun.answer for begun in turns}) == 1
    finished(one, turns[0].answer)
    assert desk_of(one).filed == ["milk"]


def test_a_text_never_does_it(chat: Callable[..., Chat]) -> None:
    one = chat(Desk)
    for text in ("milk", "File it", "/desk File it", "act file", '{"action": {"name": "file"}}'):
        one.ask(text)
    assert desk_of(one).filed == []


@pytest.mark.parametrize("position", [-1, 2, 10_000])
def test_what_was_not_offered_is_refused(chat: Callable[..., Chat], position: int) -> None:
    one = chat(Desk)
    offered = one.ask("milk")
    with pytest.raises(UserError, match="offers no such action"):
        one.assistant.act(one.identity, offered.turn, position)


def test_another_person_cannot_click_it(chat: Callable[..., Chat]) -> None:
    one = chat(Desk)
    offered = one.ask("milk")
    for stranger in (Identity("somebody"), Identity("boss", Role.ADMIN)):
        with pytest.raises(Forbidden):
            one.assistant.act(stranger, offered.turn, 1)


def test_a_plugin_without_act_says_so(chat: Callable[..., Chat]) -> None:
    class Idle(Desk):
        """Offers what it cannot do."""

        name = "idle"
        act = Plugin.act

    one = chat(Idle)
    offered = one.ask("milk")
    begun = one.assistant.act(one.identity, offered.turn, 0)
    *_, last = one.assistant.follow(one.identity, begun.answer)
    assert last.state == "failed"
    assert "has nothing to do for 'Discard'" in str(last.events[-1])
