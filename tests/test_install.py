"""Making the environment: each step, and whatever can break in the middle of it, leaves nothing that the next run trips over."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import launch
from tests.launching import ROOT, copy_checkout, made_environment, run

NO_NETWORK = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_FIND_LINKS": "",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_RETRIES": "1",
}
FAKE_PYTHON = r"""#!/bin/sh
# Stands for an interpreter: notes what it is asked, makes an environment of itself, fails where FAIL_AT says.
echo "$(head -n 1 "$(dirname "$NOTES")/checkout/.venv/launch.stamp" 2>/dev/null)|$*" >> "$NOTES"
if [ -n "$FAIL_AT" ]; then case "$*" in *$FAIL_AT*) printf "%s\n" "$FAIL_SAYS"; exit 1;; esac; fi
case "$*" in
"-m venv"*) for last in "$@"; do :; done
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python" && echo "version = 3.11.7" > "$last/pyvenv.cfg";;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    return copy_checkout(tmp_path / "checkout")


@pytest.fixture
def made(checkout: Path) -> launch.Environment:
    """The environment of a checkout, stamped as made from the run lock."""
    return made_environment(checkout)


@pytest.fixture
def pretended(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets a script stand for Python in `install`; the file that is returned gets what it was asked, after the stamp."""
    script, notes = tmp_path / "python", tmp_path / "notes"
    script.write_text(FAKE_PYTHON, encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "_base_executable", str(script))
    monkeypatch.setattr(launch, "cpu_index", lambda: ["--extra-index-url", "https://cpu.example"])
    monkeypatch.setattr(launch, "room", lambda environment: (100.0, 3.0))
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.delenv("FAIL_AT", raising=False)
    return notes


def prepare(root: Path, kind: str = "run") -> launch.Environment:
    """Make a checkout's environment in this process."""
    environment = launch.Environment(root)
    launch.prepare(environment, kind)
    return environment


# Making and mending, with a script in place of Python


def test_each_step_is_shown_and_the_stamp_is_written_last(
    checkout: Path, pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = prepare(checkout)
    asked = [line.partition("|") for line in pretended.read_text(encoding="utf-8").splitlines()]
    assert {stamp for stamp, _, _ in asked} == {"half-made"}
    commands = [
        re.sub(r"-m pip install(?: --\S+)*? (?=--require|torch|--no-deps)", "pip ", words) for _, _, words in asked
    ]
    folder = environment.folder
    assert commands == [
        f"-m venv --without-pip {folder}",
        "-m ensurepip --default-pip",
        f"pip --require-hashes --no-deps -r {environment.locks['run']}",
        f"pip {launch.torch_requirement(ROOT)} -c {folder}/launch.constraints --extra-index-url https://cpu.example",
        f"pip --no-deps --no-build-isolation -e {checkout}",
    ]
    assert environment.ready("run")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines] == [f"[{step}/5]" for step in range(1, 6)]
    assert all(re.search(r"… \d+\.\d s$", line) for line in lines)


def test_a_stamp_of_another_lock_is_mended_in_place(made: launch.Environment, pretended: Path) -> None:
    made.write_stamp("an older digest")
    shutil.copy(pretended.with_name("python"), made.python.with_name("new"))
    made.python.with_name("new").replace(made.python)
    (made.folder / "kept").touch()
    prepare(made.root)
    assert "-m venv" not in pretended.read_text(encoding="utf-8")
    assert (made.folder / "kept").exists()
    assert made.ready("run")


def test_a_half_made_environment_is_made_from_nothing(made: launch.Environment, pretended: Path) -> None:
    (made.folder / "lib" / "half").mkdir(parents=True)
    made.write_stamp(launch.HALF_MADE)
    prepare(made.root)
    assert not (made.folder / "lib").exists()
    assert made.ready("run")


def test_an_environment_without_its_interpreter_is_made_from_nothing(made: launch.Environment, pretended: Path) -> None:
    (made.folder / "lib").mkdir()
    made.python.unlink()
    made.python.symlink_to("/nowhere/python3.11")
    prepare(made.root)
    assert not (made.folder / "lib").exists()
    assert made.ready("run")


@pytest.mark.parametrize(("at", "says"), [(" -r ", "Retrying (Retry(total=0"), ("torch==", "ReadTimeout")])
def test_what_fails_before_a_change_leaves_the_stamp_as_it_was(
    made: launch.Environment, pretended: Path, monkeypatch: pytest.MonkeyPatch, at: str, says: str
) -> None:
    made.write_stamp("an older digest")
    made.python.unlink()
    shutil.copy(pretended.with_name("python"), made.python)
    monkeypatch.setenv("FAIL_AT", at)
    monkeypatch.setenv("FAIL_SAYS", says)
    with pytest.raises(launch.Trouble):
        prepare(made.root)
    assert made.stamped() == "an older digest"


def test_what_fails_while_files_are_moved_in_stays_half_made(
    checkout: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_AT", "torch==")
    monkeypatch.setenv("FAIL_SAYS", "Installing collected packages: torch\nERROR: No space left on device")
    with pytest.raises(launch.Trouble, match="The disk is full: make room"):
        prepare(checkout)
    assert launch.Environment(checkout).stamped() == launch.HALF_MADE
    monkeypatch.delenv("FAIL_AT")
    assert prepare(checkout).ready("run")


def test_a_failed_download_into_an_emptied_environment_is_not_taken_for_a_made_one(
    made: launch.Environment, pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp fits, the interpreter is gone: putting that stamp back would call an empty folder made."""
    made.python.unlink()
    monkeypatch.setenv("FAIL_AT", " -r ")
    monkeypatch.setenv("FAIL_SAYS", "Retrying (Retry(total=0")
    with pytest.raises(launch.Trouble):
        prepare(made.root)
    assert made.python.exists()
    assert not made.ready("run")


def test_pip_is_not_led_elsewhere_by_the_users_settings(
    checkout: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = pretended.with_name("python")
    script.write_text(FAKE_PYTHON + 'echo "$PIP_USER$PIP_TARGET$PYTHONPATH" >> "$NOTES.led"\n', encoding="utf-8")
    for name in ("PIP_USER", "PIP_TARGET", "PYTHONPATH"):
        monkeypatch.setenv(name, "astray")
    prepare(checkout)
    assert set(Path(f"{pretended}.led").read_text(encoding="utf-8").split()) == set()


def test_too_small_a_disk_is_refused_before_anything_is_made(
    checkout: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "room", lambda environment: (0.4, 3.0))
    with pytest.raises(launch.Trouble, match=r"^The disk has 0\.4 GB free at .*; make room for 3 GB\.$"):
        prepare(checkout)
    assert not pretended.exists()
    assert launch.Environment(checkout).stamped() == ""


def test_an_unfinished_checkout_is_named(checkout: Path) -> None:
    (checkout / "assistant" / "locks" / "run.txt").unlink()
    done = run(checkout)
    assert done.returncode == 1
    assert re.fullmatch(r"\S+/run\.txt: No such file or directory: see that .*, then start again\.\n", done.stderr)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you\n    idna==3.20 from "
            "https://x/idna.whl:\n        Expected sha256 aa\n             Got        bb",
            "The download of idna==3.20 is not the file that the lock names",
        ),
        (
            "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for idna==3.20",
            "The package index cannot be reached",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate is not trusted here"),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for this Python and machine"),
        ("working\nERROR: something new\n\n", "The installer stopped, saying 'something new'"),
        ("", "The installer stopped, saying 'nothing'"),
    ],
)
def test_what_pip_says_becomes_one_sentence(said: str, sentence: str) -> None:
    found = launch.reason(said)
    assert sentence in found
    assert "\n" not in found


class _Index(BaseHTTPRequestHandler):
    """Stands for PyTorch's index."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/torch/" else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_the_cpu_build_is_asked_for_without_a_driver_where_its_index_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(launch, "CPU_INDEX", address)
        monkeypatch.setattr(launch, "has_nvidia", lambda: False)
        assert launch.cpu_index() == ["--extra-index-url", address]
        monkeypatch.setattr(launch, "has_nvidia", lambda: True)
        assert launch.cpu_index() == []
        server.shutdown()


def test_an_index_that_does_not_answer_costs_three_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(launch, "CPU_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(launch, "has_nvidia", lambda: False)
        start = time.monotonic()
        assert launch.cpu_index() == []
        assert time.monotonic() - start < 4.0


# Two at once, kills, no network, no space


def test_the_second_of_two_waits_and_says_so(made: launch.Environment) -> None:
    digest = made.digest("run")
    made.write_stamp("an older digest")
    with (made.folder / "launch.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = [sys.executable, str(made.root / "launch.py"), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            assert second.stdout.readline().startswith("Another launch is making the environment; waiting")
            made.write_stamp(digest)
            fcntl.flock(held, fcntl.LOCK_UN)
            assert json.loads(second.stdout.read())["arguments"] == ["serve", "--no-browser"]


def test_an_installer_that_outlives_a_killed_launch_keeps_the_next_one_waiting(
    checkout: Path, pretended: Path, tmp_path: Path
) -> None:
    script, gate = tmp_path / "python", tmp_path / "gate"
    script.write_text(FAKE_PYTHON + f'while [ ! -e "{gate}" ]; do sleep 0.05; done\n', encoding="utf-8")
    code = (
        f"import runpy, sys; sys._base_executable = {str(script)!r}; sys.argv = ['launch.py']; "
        f"runpy.run_path({str(checkout / 'launch.py')!r}, run_name='__main__')"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not pretended.exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with launch.Environment(checkout).folder.joinpath("launch.lock").open("a") as lock_file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gate.touch()
        fcntl.flock(lock_file, fcntl.LOCK_EX)
    assert launch.Environment(checkout).stamped() == launch.HALF_MADE


@pytest.mark.slow
def test_without_a_network_it_says_so_and_the_next_run_goes_on_from_there(checkout: Path) -> None:
    first = run(checkout, env=NO_NETWORK)
    assert first.returncode == 1
    assert first.stderr.startswith("The package index cannot be reached: connect to the network")
    assert first.stderr.count("\n") == 1
    assert launch.Environment(checkout).stamped() == ""
    again = run(checkout, env=NO_NETWORK)
    assert again.stderr == first.stderr
    assert re.search(r"\[2/5\] Python environment … 0\.\d s", again.stdout)


@pytest.mark.slow
def test_without_space_it_says_so_and_the_next_run_starts_over(checkout: Path) -> None:
    """REL-06 for the set-up: writes fail beyond a size, as on a full disk."""
    limit = 1_000_000
    done = run(checkout, env=NO_NETWORK, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1
    assert done.stderr.startswith("The disk is full: make room")
    assert done.stderr.count("\n") == 1
    again = run(checkout, env=NO_NETWORK)
    assert again.stderr.startswith("The package index cannot be reached")
    assert "[3/5]" in again.stdout
