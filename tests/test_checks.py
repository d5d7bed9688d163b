"""The run of all checks: what belongs to it, what it shows, and what it needs of the machine."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def options() -> argparse.Namespace:
    """No option of `launch.py test`."""
    return argparse.Namespace(quick=False, campaign=False, gpu=False, arguments=["-x"])


@pytest.mark.parametrize(
    ("chosen", "marks"),
    [
        ("", "not campaign and not gpu"),
        ("quick", "not campaign and not gpu and not slow"),
        ("campaign", "campaign"),
        ("gpu", "gpu"),
    ],
)
def test_each_kind_of_run_takes_its_own_tests(options: argparse.Namespace, chosen: str, marks: str) -> None:
    if chosen:
        setattr(options, chosen, True)
    steps = checks.plan(options, Path("home"))
    assert steps["pytest"][1:] == ["-m", marks, "-x"]
    assert ("mypy" in steps) == (chosen in ("", "quick"))


def test_all_checks_run_and_what_failed_shows_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    steps = {
        "bad": python("print('why it failed'); raise SystemExit(3)"),
        "good": python("print('chatter')"),
        "pytest": python("print('== 3 passed in 0.1s ==')"),
    }
    assert checks.run(steps, dict(os.environ)) == 1
    said = capfd.readouterr().out
    assert "why it failed" in said
    assert "chatter" not in said
    assert "== 3 passed in 0.1s ==" in said
    assert re.findall(r"^(failed|passed) +\d+\.\d s  (\S+)$", said, re.MULTILINE) == [
        ("failed", "bad"),
        ("passed", "good"),
        ("passed", "pytest"),
    ]
    assert checks.run({"good": steps["good"]}, dict(os.environ)) == 0


def test_a_missing_browser_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ASSISTANT_CHROMIUM", raising=False)
    assert checks.main([]) == 1
    said = capsys.readouterr().err
    assert "need chromium and fonts-noto-cjk: `sudo apt-get install chromium fonts-noto-cjk`" in said


def test_a_browser_of_the_users_choice_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSISTANT_CHROMIUM", sys.executable)
    assert checks.find_browser()[0] == sys.executable


def test_continuous_integration_runs_the_developers_command(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = Path(shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci"))
    (tmp_path / "launch.py").write_text("import os, sys; print(os.getcwd(), sys.argv)", encoding="utf-8")
    done = subprocess.run([script, "--quick"], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(tmp_path), f"{['launch.py', 'test', '--quick']}\n"]
