"""From `python launch.py` to the first page, beside a bare Gradio hello.

    python -m benchmarks.start --home FOLDER [--quick]

Both sides are processes of their own, in turns; the clock stops when `/` answers 200 with the page. FOLDER is a state folder as
`assistant setup` leaves it; the environment exists already (it is the second start that is measured).
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.results import record

ROOT = Path(__file__).parent.parent
HELLO = (
    "import sys, gradio as gr; "
    "gr.Interface(lambda name: 'Hello ' + name, 'textbox', 'textbox').launch(server_port=int(sys.argv[1]), quiet=True)"
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_page(command: list[str], port: int) -> float:
    """Seconds from starting the command to its first page; the process is ended afterwards."""
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while time.monotonic() - started < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    if page.status == 200 and b"gradio" in page.read():
                        return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.02)
        sys.exit(f"no page after two minutes: {' '.join(command)}")
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    pairs = []
    for _ in range(2 if options.quick else 7):
        port = free_port()
        launch = [
            sys.executable,
            "launch.py",
            "--home",
            str(options.home.absolute()),
            "--port",
            str(port),
            "--no-browser",
        ]
        ours = first_page(launch, port)
        port = free_port()
        pairs.append((ours, first_page([sys.executable, "-c", HELLO, str(port)], port)))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    rows = [
        ["second `python launch.py` to the first page, s", f"{ours:.2f}", ""],
        ["bare Gradio hello, s", f"{theirs:.2f}", ""],
        ["ratio, median of pairs", f"{ratio:.2f}", "<= 1.50"],
    ]
    record("start to first page", ["what", "median", "target"], rows)


if __name__ == "__main__":
    main()
