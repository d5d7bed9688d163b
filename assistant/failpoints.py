"""Named points in the code where a test makes the process die, fail or wait.

`FAILPOINT=name:kill` (or `name:raise`, `name:sleep:SECONDS`, `name:kill:N` for the N-th passage) arms one of them;
unarmed, a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import time

_armed = os.environ.get("FAILPOINT", "")
_left: dict[str, int] = {}


class FailpointReached(OSError):
    """Raised at a point armed with `raise`; an OSError, as a full disk would be."""


def failpoint(name: str) -> None:
    """Do what the environment armed this point with; normally nothing."""
    if not _armed:
        return
    point, _, what = _armed.partition(":")
    if point != name:
        return
    kind, _, argument = what.partition(":")
    if kind == "kill":
        left = _left.setdefault(name, int(argument or 1)) - 1
        _left[name] = left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "raise":
        raise FailpointReached(28, f"failpoint {name}")
    elif kind == "sleep":
        time.sleep(float(argument or 1))
