"""What all tests share: no network but loopback, and a state folder with the real models and the demo shop in place."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent.parent / "data"
_LOOPBACK = ("127.", "localhost", "::1")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that leaves the machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def template_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder as `assistant setup` leaves it. Read only: take `prepared_home` to write to one.

    `launch.py test` makes it once in the environment and names it in ASSISTANT_TEST_HOME; otherwise it is made here.
    """
    named = os.environ.get("ASSISTANT_TEST_HOME")
    home = Path(named).absolute() if named else tmp_path_factory.mktemp("template")
    shop, questions = DATA / "knowledge" / "en", DATA / "golden" / "en" / "calibrate.jsonl"
    # A folder of an earlier run may hold an older shop: bring it up to today's.
    for command in (["setup"], ["knowledge", "add", str(shop)], ["knowledge", "calibrate", str(questions)]):
        program = [sys.executable, "-m", "assistant", *command, "--home", str(home)]
        subprocess.run(program, check=True, capture_output=True)
    return home


def _copy(template: Path, home: Path) -> Path:
    """Models as hard links (they are never written to), everything else copied."""
    shutil.copytree(template / "models", home / "models", copy_function=os.link)
    for path in template.iterdir():
        if path.is_dir() and path.name != "models":
            shutil.copytree(path, home / path.name)
        elif path.is_file() and not path.name.endswith((".log", ".key")):
            shutil.copy2(path, home / path.name)
    return home


@pytest.fixture
def prepared_home(template_home: Path, tmp_path: Path) -> Path:
    """A state folder of one's own with the base models and the demo shop."""
    return _copy(template_home, tmp_path / "home")


@pytest.fixture(scope="module")
def module_home(template_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `prepared_home`, for a whole module."""
    return _copy(template_home, tmp_path_factory.mktemp("module") / "home")


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_cli("ask", "...", home=HOME)`: the command line in a process of its own, offline."""

    def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "assistant", *arguments, "--home", str(home)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)

    return run
