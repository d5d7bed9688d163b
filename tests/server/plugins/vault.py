"""A plugin that only the administrator may call."""

from __future__ import annotations

from collections.abc import Iterable

from assistant import Event, Options, Plugin, Request, Role, Text


class Vault(Plugin[Options]):
    """Opens for the administrator."""

    name = "vault"
    summary = "Opens the vault."
    examples = ("open the vault",)
    role = Role.ADMIN

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text("the vault is open")
