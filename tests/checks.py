"""Every check of the project, one after the other: `python launch.py test` is this file with the environment in place.

All of them run, whether or not an earlier one failed. Standard library alone: it must start where a package is broken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HAS_CUDA = "import torch; raise SystemExit(not torch.cuda.is_available())"
NO_TESTS = 5
"""pytest's exit code where it found no test: none is marked gpu until there is a model to train."""
VARIABLES = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def find_browser() -> tuple[str, list[str]]:
    """The Chromium that the browser tests drive, and the Debian packages that are missing beside it or instead."""
    named = os.environ.get("ASSISTANT_CHROMIUM")
    program = next((path for path in map(shutil.which, [named] if named else CHROMIUM) if path), "")
    missing = [] if program else ["chromium"]
    if sys.platform == "linux":
        lister = shutil.which("fc-list")
        fonts = subprocess.run([lister, ":lang=zh"], capture_output=True, check=False).stdout if lister else b""
        missing += [] if fonts.strip() else ["fonts-noto-cjk"]
    return program, missing


def install_browser(packages: Sequence[str]) -> None:
    """Put Debian packages in place where this user may; what fails is seen by looking again."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return
    print(f"Installing {' and '.join(packages)} …", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=quiet, stdout=subprocess.DEVNULL, check=False)
    subprocess.run(["apt-get", "install", "-y", "-qq", *packages], env=quiet, stdout=subprocess.DEVNULL, check=False)


def plan(options: argparse.Namespace, home: Path) -> dict[str, list[str]]:
    """The commands by the name that is shown, in their order; `home` is a state folder that later runs find again."""
    programs = Path(sys.executable).parent
    assistant = [sys.executable, "-m", "assistant"]
    chosen = "campaign" if options.campaign else "gpu" if options.gpu else "not campaign and not gpu"
    steps = {
        "ruff check": [str(programs / "ruff"), "check", "."],
        "ruff format": [str(programs / "ruff"), "format", "--check", "."],
        "mypy": [str(programs / "mypy")],
        "lint-imports": [str(programs / "lint-imports")],
        "demo shop": [*assistant, "setup", "--home", str(home)],
        "generated docs": [*assistant, "docs", "--check"],
        "pytest": [str(programs / "pytest"), "-m", chosen + " and not slow" * options.quick, *options.arguments],
    }
    if options.campaign or options.gpu:
        return {name: steps[name] for name in ("demo shop", "pytest")}
    return steps


def run(steps: dict[str, list[str]], variables: dict[str, str]) -> int:
    """Run all steps with a line each, pytest's own output and that of whatever failed; 1 where any did, else 0."""
    summary = []
    for place, (name, command) in enumerate(steps.items(), 1):
        streams = name == "pytest"
        print(f"[{place}/{len(steps)}] {name} … ", end="\n" if streams else "", flush=True)
        start = time.monotonic()
        output = None if streams else subprocess.PIPE
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, check=False)
        seconds = time.monotonic() - start
        print(f"{seconds:.1f} s" + ", failed" * bool(done.returncode), flush=True)
        if done.returncode and done.stdout:
            print(done.stdout.decode(errors="replace"), flush=True)
        nothing = streams and done.returncode == NO_TESTS and "gpu" in command
        summary.append((0 if nothing else done.returncode, seconds, name))
    print()
    for code, seconds, name in summary:
        print(f"{'failed' if code else 'passed'}  {seconds:7.1f} s  {name}")
    return int(any(code for code, _, _ in summary))


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("quick", "campaign", "gpu"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args(arguments)
    if options.gpu and subprocess.run([sys.executable, "-c", HAS_CUDA], check=False).returncode:
        print("There is no CUDA device here: the tests marked gpu are skipped.")
        return 0
    program, missing = find_browser()
    if missing:
        install_browser(missing)
        program, missing = find_browser()
    if missing:
        print(
            f"The browser tests need {' and '.join(missing)}: `sudo apt-get install {' '.join(missing)}`, or your "
            "system's packages of that kind (ASSISTANT_CHROMIUM names a browser that stands elsewhere).",
            file=sys.stderr,
        )
        return 1
    home = ROOT / ".venv" / "test-home"
    paths = {"ASSISTANT_TEST_HOME": str(home), "ASSISTANT_CHROMIUM": program}
    return run(plan(options, home), {**os.environ, **VARIABLES, **paths})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
