"""The record of measurements: every run is printed, and appended to `RESULTS.md` with when, how and on what it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")
PACKAGES = (
    "gradio",
    "numpy",
    "onnxruntime",
    "sentence-transformers",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
)
_HEAD = """# Measurements

Every run is appended by the script that made it, worse ones too. Where another program worked on the same cores, wall times are
long and ratios hold.
"""


def record(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> None:
    """Print the table and append it under `title`, with the date, the command, the machine, versions and a `note`."""
    shown = table(columns, rows) + (f"\n\n{note}" if note else "")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command()}`, {machine()}, {versions}."
    if not FILE.exists():
        FILE.write_text(_HEAD, encoding="utf-8")
    with FILE.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}\n\n{made}\n\n{shown}\n")
    print(f"{title}\n\n{shown}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that a terminal shows it well too."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def command() -> str:
    """The command line as one types it in the project's folder; of an absolute path only the last part is told."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    return shlex.join(["python", "-m", module, *(_short(argument) for argument in sys.argv[1:])])


def _short(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals:
        return f"{key}={_short(value)}"
    return Path(argument).name if Path(argument).is_absolute() else argument


def machine() -> str:
    """Cores, processor and Python; nothing that tells one machine from its like."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}, Python {platform.python_version()}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
