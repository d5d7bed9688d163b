"""The server as a process of its own, ended with the test that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
READY_SECONDS = 60.0
CLOSE_SECONDS = 15.0


@dataclass
class Served:
    """A running server: where it is, the token it printed, and what it says on standard error."""

    process: subprocess.Popen[str]
    home: Path
    address: str = ""
    token: str = ""
    lines: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        """The port it took."""
        return int(self.address.rpartition(":")[2])

    @property
    def printed(self) -> str:
        """The address with its one-time token, as it was printed."""
        return f"{self.address}/?token={self.token}"

    @property
    def log(self) -> str:
        """The program's log."""
        return (self.home / "assistant.log").read_text(encoding="utf-8")

    def read(self) -> None:
        """Take what the process writes on standard error until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ready: "):
                self.address, _, self.token = line.removeprefix("Ready: ").strip().partition("/?token=")
                self.ready.set()
        self.ready.set()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to end and return its exit code; one that does not end is killed, and that is an error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end within {CLOSE_SECONDS:g} seconds") from None


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server under test: nothing of the operator's settings, the plugins of the tests beside ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTANT_")}
    return kept | {"ASSISTANT_PLUGINS__FOLDERS": f'["{PLUGINS}"]'} | dict(more or {})


@contextlib.contextmanager
def serving(home: Path, *, port: int = 0, more: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A server on `home` that answers; `more` is added to its environment."""
    command = [sys.executable, "-m", "assistant", "serve", "--home", str(home), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(more)
    )
    served = Served(process, home)
    reader = threading.Thread(target=served.read, daemon=True)
    reader.start()
    try:
        assert served.ready.wait(READY_SECONDS), f"no address after {READY_SECONDS:g} seconds: {served.lines}"
        assert served.address, f"the server ended before it was ready: {served.lines}"
        yield served
    finally:
        _end(process)
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Leave no process behind, whatever the test did."""
    if process.poll() is not None:
        return
    process.terminate()
    until = time.monotonic() + CLOSE_SECONDS
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
