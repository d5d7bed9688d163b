"""PERF-01: the first answer from cold and what it holds in memory, without the page.

    python -m benchmarks.cold --home FOLDER [--quick]

FOLDER is a state folder as `assistant setup` leaves it. Each round is a process of its own: `assistant ask` with a question,
and the imports. The question is answered from a knowledge base of 10,000 further entries.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import record

ASK = ["ask", "how long do I have to send something back?", "--json"]
PEAK = (
    "import resource, sys; sys.argv = ['assistant'] + sys.argv[1:]; import atexit; "
    "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)); "
    "from assistant.cli import main; main()"
)


def grown(home: Path, folder: Path, entries: int) -> Path:
    """A copy of the state folder with so many more entries in its knowledge base."""
    copy = folder / "home"
    shutil.copytree(home / "models", copy / "models", copy_function=os.link)
    for path in home.iterdir():
        if path.name.startswith("assistant.db"):
            shutil.copy2(path, copy / path.name)
    table = folder / "more.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        for number in range(entries):
            writer.writerow(
                [f"What is part {number} made of?", f"Part {number} is made of steel number {number * 7 % 997}."]
            )
    command = [sys.executable, "-m", "assistant", "knowledge", "add", str(table), "--home", str(copy), "--json"]
    subprocess.run(command, check=True, capture_output=True)
    return copy


def asked(home: Path) -> tuple[float, float]:
    """(seconds, peak MB) of one `assistant ask` in a process of its own."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *ASK, "--home", str(home)], check=True, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if not json.loads(done.stdout)["sources"]:
        sys.exit("the question found no source: is the demo shop in that state folder?")
    return seconds, int(done.stderr.split()[-1]) / 1024


def timed(arguments: list[str]) -> float:
    """Wall seconds of a process."""
    started = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, entries = (2, 500) if options.quick else (7, 10_000)
    imports = "import time; t = time.perf_counter(); import assistant; print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as name:
        home = grown(options.home.absolute(), Path(name), entries)
        asks = [asked(home) for _ in range(rounds)]
        plugins = [timed(["-m", "assistant", "plugins", "--home", str(home)]) for _ in range(rounds)]
        package = [
            float(subprocess.run([sys.executable, "-c", imports], check=True, capture_output=True, text=True).stdout)
            for _ in range(rounds)
        ]
    rows = [
        ["first answer from cold, s", _spread([seconds for seconds, _ in asks]), "<= 3.00"],
        ["peak memory of it, MB", _spread([peak for _, peak in asks], 0), "<= 350"],
        ["`assistant plugins`, s", _spread(plugins), "<= 1.50"],
        ["`import assistant`, s", _spread(package), "<= 0.30"],
    ]
    record(f"cold start (PERF-01), {entries:,} entries and the demo shop", ["what", "median (best)", "target"], rows)


def _spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f})"


if __name__ == "__main__":
    main()
