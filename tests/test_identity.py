"""Who may do what: the whole table, spelt out a second time, and nothing beside it."""

from __future__ import annotations

import itertools

import pytest

from assistant.errors import Forbidden
from assistant.identity import ABSENT, LOCAL, RULES, Identity, Role, authorize, call_action, may

ME = "v-me"
OWN, OTHERS, NOBODYS = ME, "v-other", None
C, A, D = Role.CUSTOMER, Role.AGENT, Role.ADMIN

# action: who may do it to their own thing (or nobody's), who to a thing of others (None: nobody)
EXPECTED: dict[str, tuple[Role, Role | None]] = {
    "page.read": (C, D),
    "conversation.create": (C, None),
    "conversation.list": (C, D),
    "conversation.read": (C, D),
    "conversation.write": (C, None),
    "conversation.delete": (C, D),
    "feedback.write": (C, None),
    "file.read": (C, D),
    "job.read": (C, D),
    "plugin.list": (C, D),
    "plugin.call.customer": (C, D),
    "plugin.call.agent": (A, D),
    "plugin.call.admin": (D, D),
    "action.run": (C, None),
    "knowledge.search": (C, D),
    "knowledge.read": (A, D),
    "knowledge.write": (D, D),
    "model.read": (A, D),
    "model.write": (D, D),
    "server.run": (D, D),
}


def test_every_action_is_in_the_table_below() -> None:
    """SEC-06: a new action has to be thought about twice."""
    assert set(RULES) == set(EXPECTED)


@pytest.mark.parametrize(
    ("action", "role", "owner"), list(itertools.product(EXPECTED, Role, (OWN, OTHERS, NOBODYS))), ids=str
)
def test_only_what_the_table_allows_is_allowed(action: str, role: Role, owner: str | None) -> None:
    """SEC-07: another's thing is out of reach unless the table says otherwise."""
    mine, others = EXPECTED[action]
    expected = role >= mine and (owner != OTHERS or (others is not None and role >= others))
    identity = Identity(ME, role)
    assert may(identity, action, owner) is expected
    if expected:
        authorize(identity, action, owner)
    else:
        with pytest.raises(Forbidden):
            authorize(identity, action, owner)


def test_an_unknown_action_is_a_fault_of_the_program() -> None:
    for check in (may, authorize):
        with pytest.raises(KeyError):
            check(LOCAL, "conversation.raed")


def test_another_ones_thing_is_said_to_be_absent() -> None:
    with pytest.raises(Forbidden) as raised:
        authorize(Identity(ME), "conversation.read", OTHERS)
    assert str(raised.value) == ABSENT


def test_a_missing_role_says_which_and_what_to_do() -> None:
    with pytest.raises(Forbidden, match=r"needs the role admin; you are customer.*Open the address"):
        authorize(Identity(ME), "knowledge.write")


def test_an_empty_owner_is_nobody_one_could_be() -> None:
    assert not may(Identity(ME), "conversation.read", "")


def test_calling_a_plugin_is_an_action_of_its_role() -> None:
    assert {call_action(role) for role in Role} <= set(RULES)


def test_the_command_line_is_the_administrator() -> None:
    assert all(may(LOCAL, action) for action in RULES)
