"""Who asks, and what they may do: one table, one function in front of every handler, route and command."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import IntEnum

from assistant.errors import Forbidden


class Role(IntEnum):
    """Roles in rising order: a higher one may do whatever a lower one may."""

    CUSTOMER = 1
    AGENT = 2
    ADMIN = 3


def new_id() -> str:
    """An id that cannot be guessed: 122 random bits."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller: an opaque id that owns conversations, documents and jobs, and a role."""

    id: str
    role: Role = Role.CUSTOMER


ABSENT = "There is nothing here under that address, or it is not yours."
"""What is said of another's thing and of a thing that does not exist, so that nobody can tell them apart."""

LOCAL = Identity("local", Role.ADMIN)
"""Whoever has a shell on the machine and may read the state folder: the command line acts as this identity."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`role` is needed in any case; acting on a thing of somebody else's needs `others` (None: nobody may)."""

    role: Role
    others: Role | None = Role.ADMIN


RULES: dict[str, Rule] = {
    "page.read": Rule(Role.CUSTOMER),
    "conversation.create": Rule(Role.CUSTOMER, None),
    "conversation.list": Rule(Role.CUSTOMER),
    "conversation.read": Rule(Role.CUSTOMER),
    "conversation.write": Rule(Role.CUSTOMER, None),
    "conversation.delete": Rule(Role.CUSTOMER),
    "feedback.write": Rule(Role.CUSTOMER, None),
    "file.read": Rule(Role.CUSTOMER),
    "job.read": Rule(Role.CUSTOMER),
    "plugin.list": Rule(Role.CUSTOMER),
    "plugin.call.customer": Rule(Role.CUSTOMER),
    "plugin.call.agent": Rule(Role.AGENT),
    "plugin.call.admin": Rule(Role.ADMIN),
    "action.run": Rule(Role.CUSTOMER, None),
    "knowledge.search": Rule(Role.CUSTOMER),
    "knowledge.read": Rule(Role.AGENT),
    "knowledge.write": Rule(Role.ADMIN),
    "model.read": Rule(Role.AGENT),
    "model.write": Rule(Role.ADMIN),
    "server.run": Rule(Role.ADMIN),
}


def may(identity: Identity, action: str, owner: str | None = None) -> bool:
    """Whether `identity` may do `action` to a thing of `owner`; None means a thing that belongs to nobody."""
    rule = RULES[action]
    if identity.role < rule.role:
        return False
    if owner is None or owner == identity.id:
        return True
    return rule.others is not None and identity.role >= rule.others


def authorize(identity: Identity, action: str, owner: str | None = None) -> None:
    """Raise `Forbidden` unless `identity` may do `action` to a thing of `owner`.

    Another's thing is reported as absent, so that ids cannot be probed.
    """
    if may(identity, action, owner):
        return
    rule = RULES[action]
    if identity.role < rule.role:
        raise Forbidden(
            f"This needs the role {rule.role.name.lower()}; you are {identity.role.name.lower()}. "
            "Open the address that the server printed at its start to become the administrator."
        )
    raise Forbidden(ABSENT)


def call_action(role: Role) -> str:
    """The action that calling a plugin of `role` amounts to."""
    return f"plugin.call.{role.name.lower()}"
