"""The one command: what it refuses, that the second start does nothing, and what its stamp is good for."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from tests.launching import ROOT, copy_checkout, made_environment, run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    return copy_checkout(tmp_path / "checkout")


@pytest.fixture
def made(checkout: Path) -> launch.Environment:
    """The environment of a checkout, stamped as made from the run lock."""
    return made_environment(checkout)


# The Python it is started with, and its arguments


def test_an_old_python_is_told_in_one_sentence_what_to_install() -> None:
    fake = f"import runpy, sys; sys.version_info = (3, 8, 10, 'final', 0); runpy.run_path({str(ROOT / 'launch.py')!r})"
    done = subprocess.run([sys.executable, "-c", fake], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        r"The assistant needs Python 3\.11 or newer; this is .*\. Install .* python3\.11 launch\.py\n", done.stderr
    )


def test_the_whole_file_can_be_read_by_python_3_6() -> None:
    ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_nothing_but_sys_is_imported_ahead_of_the_version_check() -> None:
    body = ast.parse((ROOT / "launch.py").read_text(encoding="utf-8")).body
    check = next(place for place, node in enumerate(body) if isinstance(node, ast.If))
    assert [ast.unparse(node) for node in body[:check] if not isinstance(node, ast.Expr)] == ["import sys"]


def test_it_imports_the_standard_library_alone() -> None:
    tree = ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "65536"], "expected a number from 0 (a free one) to 65535, found '65536'"),
        (["--port", "-1"], "--port"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["fly"], "invalid choice: 'fly'"),
        (["doctor", "--port", "1"], "unrecognized arguments: --port 1"),
        (["test", "--quick", "--gpu"], "not allowed with"),
        (["--no-brow"], "unrecognized arguments: --no-brow"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(checkout: Path, arguments: list[str], said: str) -> None:
    done = run(checkout, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (checkout / ".venv").exists()


# The second start


def test_a_made_environment_is_entered_at_once_with_the_arguments(made: launch.Environment, tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(made.root, "--host", "0.0.0.0", "--port", "0", "--home", "state", "--no-browser", cwd=tmp_path)
    seconds = time.monotonic() - start
    assert json.loads(done.stdout) == {
        "arguments": ["serve", "--host", "0.0.0.0", "--port", "0", "--home", str(tmp_path / "state"), "--no-browser"],
        "folder": str(made.root),
        "home": os.environ.get("ASSISTANT_HOME"),
    }
    assert done.returncode == 0
    assert seconds < 1.0
    assert not made.log.exists()


def test_settings_decide_what_is_not_on_the_command_line(made: launch.Environment) -> None:
    assert json.loads(run(made.root).stdout)["arguments"] == ["serve"]


def test_a_relative_state_folder_of_the_environment_is_the_callers(made: launch.Environment, tmp_path: Path) -> None:
    done = run(made.root, cwd=tmp_path, env={"ASSISTANT_HOME": "mine"})
    assert json.loads(done.stdout)["home"] == str(tmp_path / "mine")


def test_the_programs_exit_code_is_passed_on(made: launch.Environment) -> None:
    (made.root / "assistant" / "__main__.py").write_text("raise SystemExit(7)", encoding="utf-8")
    assert run(made.root).returncode == 7


def test_doctor_is_the_programs_once_there_is_an_environment(made: launch.Environment, tmp_path: Path) -> None:
    done = run(made.root, "doctor", "--home", "state", cwd=tmp_path)
    assert json.loads(done.stdout)["arguments"] == ["doctor", "--home", str(tmp_path / "state")]


def test_doctor_says_what_to_do_before_there_is_one(checkout: Path) -> None:
    done = run(checkout, "doctor")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["Python", "environment", "disk", "port"]
    assert "is not there yet: run `python launch.py`" in done.stdout
    assert not (checkout / ".venv").exists()


def test_arguments_of_pytest_reach_the_checks_in_their_order(made: launch.Environment) -> None:
    made.write_stamp(made.digest("test"))
    (made.root / "tests").mkdir()
    (made.root / "tests" / "checks.py").write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    done = run(made.root, "test", "tests/test_a.py", "-k", "one or two", "--quick", "-x")
    assert done.stdout.strip() == str(["--quick", "--", "tests/test_a.py", "-k", "one or two", "-x"])


# What the stamp is good for


def test_the_test_lock_serves_both_and_the_run_lock_only_itself(made: launch.Environment) -> None:
    assert (made.ready("run"), made.ready("test")) == (True, False)
    made.write_stamp(made.digest("test"))
    assert (made.ready("run"), made.ready("test")) == (True, True)


@pytest.mark.parametrize("name", ["assistant/locks/run.txt", "pyproject.toml", ".venv/pyvenv.cfg"])
def test_a_change_of_what_the_environment_was_made_from_is_noticed(made: launch.Environment, name: str) -> None:
    path = made.root / name
    path.write_text(path.read_text(encoding="utf-8").replace("version = ", "version = 9"), encoding="utf-8")
    if name.endswith("run.txt"):
        path.write_text("other==1.0\n", encoding="utf-8")
    assert not made.ready("run")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"half-made", b"0" * 64])
def test_a_broken_stamp_is_no_stamp(made: launch.Environment, content: bytes) -> None:
    made.stamp.write_bytes(content)
    assert not made.ready("run")


def test_an_environment_that_was_moved_counts_as_half_made(made: launch.Environment, tmp_path: Path) -> None:
    moved = made.root.rename(tmp_path / "elsewhere")
    assert launch.Environment(moved).stamped() == launch.HALF_MADE
