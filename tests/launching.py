"""A checkout to try launch.py in: a copy of what it reads, and a program that says how it was called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import launch

ROOT = Path(__file__).resolve().parent.parent


def copy_checkout(root: Path) -> Path:
    """Put into `root` what launch.py reads; the program there prints its arguments, folder and `ASSISTANT_HOME` as JSON."""
    (root / "assistant").mkdir(parents=True)
    for name in ("launch.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "assistant" / "locks", root / "assistant" / "locks")
    (root / "assistant" / "__init__.py").touch()
    said = "print(json.dumps({'arguments': sys.argv[1:], 'folder': os.getcwd(), 'home': os.environ.get('ASSISTANT_HOME')}))"
    (root / "assistant" / "__main__.py").write_text(f"import json, os, sys\n{said}\n", encoding="utf-8")
    return root


def made_environment(checkout: Path) -> launch.Environment:
    """The environment of a checkout, stamped as made from the run lock."""
    environment = launch.Environment(checkout)
    (environment.folder / "bin").mkdir(parents=True)
    (environment.folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n", encoding="utf-8")
    environment.python.symlink_to(sys.executable)
    environment.write_stamp(environment.digest("run"))
    return environment


def run(root: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Start a checkout's launch.py as a user does."""
    variables = {**os.environ, **more.pop("env", {})}
    command = [sys.executable, str(root / "launch.py"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False, **more)
