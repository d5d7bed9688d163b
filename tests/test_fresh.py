"""From a fresh checkout to the first page, for real: minutes, and a package index."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A copy of the whole project as a clone would have it."""
    root = tmp_path / "fresh"
    ignored = shutil.ignore_patterns(".venv", ".git", "var", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, root, ignore=ignored)
    yield root
    shutil.rmtree(root)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_a_fresh_checkout_serves_within_five_minutes_and_again_at_once(fresh: Path) -> None:
    def first_page(log: Path) -> float:
        start = time.monotonic()
        command = [sys.executable, "launch.py", "--port", "0", "--no-browser", "--home", str(fresh / "state")]
        with (
            log.open("w") as said,
            subprocess.Popen(command, cwd=fresh, stdout=said, stderr=subprocess.STDOUT) as server,
        ):
            try:
                while not re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8")):
                    assert server.poll() is None, log.read_text(encoding="utf-8")
                    time.sleep(0.1)
                return time.monotonic() - start
            finally:
                server.terminate()

    assert first_page(fresh / "first.log") < 300
    assert first_page(fresh / "second.log") < 15
    assert "[1/5]" not in (fresh / "second.log").read_text(encoding="utf-8")
    anywhere = [str(fresh / ".venv/bin/python"), "-c", "import assistant, plugins; print(assistant.__file__)"]
    done = subprocess.run(anywhere, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(fresh / "assistant" / "__init__.py")
    assert subprocess.run([fresh / ".venv/bin/python", "-m", "pip", "check"], check=False).returncode == 0
