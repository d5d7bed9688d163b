"""What this installation has, a row each, and what to do where something is wrong. It looks and changes nothing."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy.exc import DBAPIError

from assistant.schema import SCHEMA
from assistant.settings import Settings
from assistant.storage import Database

State: TypeAlias = Literal["ok", "warn", "bad"]
LOCK = Path(__file__).with_name("locks") / "run.txt"
PYTHON = (3, 11)
LITTLE_GB, TOO_LITTLE_GB = 5.0, 1.0
_AGAIN = "Delete the folder .venv of the checkout and run `python launch.py`"
_ASK_TORCH = """
import json, torch
cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
mps = torch.backends.mps.is_available()
print(json.dumps({"version": torch.__version__, "cuda": [[c.name, c.total_memory] for c in cuda], "mps": mps}))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was looked at: `found` says what is there, `cure` what to do ("" where nothing is)."""

    name: str
    state: State
    found: str
    cure: str = ""


def examine(home: Path, settings: Settings) -> list[Row]:
    """A row for each thing the program needs. Never raises: a check that breaks is a bad row with its reason."""
    checks: dict[str, Callable[[], list[Row]]] = {
        "Python": _python,
        "packages": _packages,
        "device": _device,
        "disk": lambda: _disk(home),
        "state folder": lambda: _folder(home),
        "database": lambda: _database(home),
        "models": lambda: _models(home, settings),
        "port": lambda: _port(settings),
    }
    return [row for name, check in checks.items() for row in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], list[Row]]) -> list[Row]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whoever asks what is wrong must get the other rows
        reason = " ".join(str(error).split()) or "no reason given"
        cure = "Mend what the reason names and ask again"
        return [Row(name, "bad", f"could not be examined: {type(error).__name__}: {reason}", cure)]


def _python() -> list[Row]:
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < PYTHON:
        return [Row("Python", "bad", found, "Install Python 3.11 or newer and run `python3.11 launch.py`")]
    return [Row("Python", "ok", found)]


def _packages() -> list[Row]:
    if not LOCK.exists():
        return [Row("packages", "bad", f"the list of versions is missing: {LOCK}", "Fetch the project again")]
    wanted = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)( ;)?", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    missing, other = [], []
    for name, version, only_somewhere in wanted:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if not only_somewhere:
                missing.append(f"{name}=={version}")
            continue
        if found.partition("+")[0] != version:
            other.append((f"{name}=={version}", f"{name} {found} instead of {version}"))
    if not missing and not other:
        return [Row("packages", "ok", f"{len(wanted)} as in the lock")]
    said = [f"{name.replace('==', ' ')} is missing" for name in missing] + [text for _, text in other]
    pins = missing + [pin for pin, _ in other]
    few = f"`{sys.executable} -m pip install --no-deps {' '.join(pins)}`"
    found = ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")
    return [Row("packages", "bad" if missing else "warn", found, few if len(pins) <= 3 else _AGAIN)]


def _device() -> list[Row]:
    """torch is asked in a process of its own: it takes seconds and hundreds of megabytes."""
    cpu = _cpu()
    try:
        said = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return [Row("device", "warn", f"{cpu}; torch did not start within 120 s", "Ask again when the machine is idle")]
    if said.returncode:
        reason = (said.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return [Row("device", "bad", f"{cpu}; torch cannot be loaded: {reason}", _AGAIN)]
    answer = json.loads(said.stdout.strip().splitlines()[-1])
    torch = f"torch {answer['version']}"
    if answer["cuda"]:
        cards = ", ".join(f"{name}, {memory / 1e9:.0f} GB" for name, memory in answer["cuda"])
        return [Row("device", "ok", f"CUDA: {cards}; {torch}")]
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        found = f"{cpu}; there is an NVIDIA driver, and {torch} does not use it"
        return [Row("device", "warn", found, f"{_AGAIN}; where that changes nothing, update the driver")]
    return [Row("device", "ok", f"{'MPS, ' if answer['mps'] else ''}{cpu}; {torch}")]


def _cpu() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    information = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if information.exists():
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", information.read_text(encoding="utf-8"), re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    names = {"AVX2": {"avx2"}, "AVX-512": {"avx512f"}, "bf16": {"avx512_bf16", "amx_bf16", "bf16"}}
    units = [name for name, any_of in names.items() if flags & any_of]
    return f"CPU, {cores} core{'s' * (cores != 1)}" + (f" with {', '.join(units)}" if units else "")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _disk(home: Path) -> list[Row]:
    free = shutil.disk_usage(_existing(home)).free / 1e9
    found = f"{free:.1f} GB free at {home}"
    if free < TOO_LITTLE_GB:
        return [Row("disk", "bad", found, "Make room, or move the state folder with --home")]
    if free < LITTLE_GB:
        return [Row("disk", "warn", found, f"Training needs about {LITTLE_GB:.0f} GB: make room before it")]
    return [Row("disk", "ok", found)]


def _folder(home: Path) -> list[Row]:
    if not home.exists():
        return [Row("state folder", "warn", f"{home} is not there yet", "`assistant serve` makes it")]
    if not home.is_dir():
        return [Row("state folder", "bad", f"{home} is a file", "Name a folder with --home")]
    try:
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        cure = (
            "Make room on the disk" if error.errno == errno.ENOSPC else f"Give it to this user: `chown -R $USER {home}`"
        )
        return [Row("state folder", "bad", f"{home} cannot be written to: {error.strerror}", cure)]
    if os.name != "nt" and home.stat().st_mode & 0o007:
        return [Row("state folder", "warn", f"{home} can be read by every user of this machine", f"`chmod 700 {home}`")]
    return [Row("state folder", "ok", str(home))]


def _database(home: Path) -> list[Row]:
    path = home / "assistant.db"
    if not path.exists():
        return [Row("database", "warn", "not there yet", "`assistant serve` makes it")]
    database = Database(f"sqlite:///{path}")
    restore = f"Stop the program and restore {path.name} from a backup"
    try:
        version, problem = database.health()
    except DBAPIError as error:
        return [Row("database", "bad", f"cannot be read: {error.orig}", restore)]
    finally:
        database.close()
    found = f"version {version or 'none'}, {path.stat().st_size / 1e6:.1f} MB"
    if problem:
        return [Row("database", "bad", f"damaged: {problem}", restore)]
    if version > SCHEMA:
        return [Row("database", "bad", f"{found}, this program knows {SCHEMA}", "Update the program")]
    if version != SCHEMA:
        return [Row("database", "warn", f"{found}, {SCHEMA} is the newest", "The next start brings it up to date")]
    return [Row("database", "ok", found)]


def _models(home: Path, settings: Settings) -> list[Row]:
    from assistant.models.catalog import CATALOG
    from assistant.models.store import Store

    models = []
    if (home / "assistant.db").exists():
        database = Database(f"sqlite:///{home / 'assistant.db'}")
        try:
            if database.health()[0] == SCHEMA:
                models = Store(home, database).list()
        except DBAPIError:
            return [Row("models", "bad", "not known: they stand in the database", "Mend the database first")]
        finally:
            database.close()
    needed = settings.knowledge.embedder
    rows = []
    for model in models:
        if model.in_place:
            unused = "" if model.current else ", not in use"
            found = f"{model.kind}, {model.licence}, {model.size / 1e6:.0f} MB{unused}"
            cure = f"`assistant models pull {model.name}`" if model.problem else ""
            state: State = "ok" if not model.problem else "bad" if model.current else "warn"
            rows.append(Row(f"model {model.name}", state, f"{found}{'; ' * bool(model.problem)}{model.problem}", cure))
    for name in sorted({needed, *CATALOG} - {model.name for model in models if model.in_place}):
        cure = f"`assistant models pull {name}`"
        rows.append(Row(f"model {name}", "bad" if name == needed else "warn", "not in place", cure))
    return rows


def _port(settings: Settings) -> list[Row]:
    host, port = settings.server.host, settings.server.port
    if port == 0:
        return [Row("port", "ok", f"a free one of {host}")]
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":  # as the server does: connections that are fading away do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                cure = "Set another host or port: `python launch.py --host H --port P`"
                return [Row("port", "bad", f"{host}:{port} cannot be listened at: {error.strerror}", cure)]
        else:
            return [Row("port", "ok", f"{host}:{port} is free")]
    holder, ours = _holder(port)
    if ours:
        return [Row("port", "ok", f"{host}:{port} is this program's own: {holder}")]
    return [Row("port", "bad", f"{host}:{port} is taken by {holder}", "End it, or choose another with --port")]


def _holder(port: int) -> tuple[str, bool]:
    """Who listens at `port`, and whether it is a server of this program."""
    import psutil

    try:
        found = [
            c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port and c.pid
        ]
        if not found:
            return "another program", False
        process = psutil.Process(found[0])
        words = process.cmdline()
        return f"process {process.pid} ({process.name()})", "serve" in words and any("assistant" in w for w in words)
    except psutil.Error:
        return "another program", False
