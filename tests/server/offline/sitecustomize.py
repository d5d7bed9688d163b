"""Put this folder on PYTHONPATH and the process, with those it starts, reaches loopback alone.

Whatever else is tried fails as on a machine without a network, and is noted in the file that OFFLINE_ATTEMPTS names.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

_ATTEMPTS = Path(os.environ["OFFLINE_ATTEMPTS"])
_LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


def _refuse(name: object) -> None:
    host = name.decode() if isinstance(name, bytes) else name
    if host is None or host == "" or str(host).startswith(_LOOPBACK):
        return
    with _ATTEMPTS.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {host}\n")
    raise OSError(101, "Network is unreachable")


def _guard_name(name: str) -> None:
    original = getattr(socket, name)

    def guarded(host: Any, *arguments: Any, **named: Any) -> Any:
        _refuse(host)
        return original(host, *arguments, **named)

    setattr(socket, name, guarded)


def _guard_address(name: str) -> None:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(arguments[-1][0])
        return original(self, *arguments)

    setattr(socket.socket, name, guarded)


for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
    _guard_name(_name)
for _name in ("connect", "connect_ex", "sendto"):
    _guard_address(_name)
