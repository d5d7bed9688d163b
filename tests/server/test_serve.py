"""How the server starts and ends: a taken port, SIGTERM and a kill in mid-answer, and what is there after a restart."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from assistant.errors import UserError
from assistant.server import _listen
from tests.server.serving import Served, serving
from tests.server.visitor import Visitor

pytestmark = pytest.mark.slow  # a dozen starts of the whole program
RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_taken_port_is_one_sentence(run_cli: RunCli, tmp_path: Path) -> None:
    """Exit code 1, what to do, and nothing is made before the port is had."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run_cli("serve", "--port", str(port), "--no-browser", home=tmp_path / "home")
    sentence = f"Port {port} is taken by another program. Give another one: --port {port + 1}, or 0 for any.\n"
    assert (done.returncode, done.stderr, done.stdout) == (1, sentence, "")
    assert not (tmp_path / "home").exists()


def test_two_starts_at_once_do_not_share_a_port() -> None:
    """The port is the first one's from the moment it is taken, however long the models need."""
    first = _listen("127.0.0.1", 0)
    with first, pytest.raises(UserError, match="is taken by another program"):
        _listen("127.0.0.1", first.getsockname()[1])


def test_a_port_can_be_taken_again_at_once() -> None:
    """A restart does not wait for the old connections' time-out."""
    first = _listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = first.accept()
    accepted.close()
    client.close()
    first.close()
    _listen("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("256.1.1.1", 0, r"^Cannot listen on 256\.1\.1\.1:0: .+\. Give another --host or --port\.$"),
        ("192.0.2.1", 0, r"^Cannot listen on 192\.0\.2\.1:0: .+\. Give another --host or --port\.$"),
        ("127.0.0.1", 70000, r"^A port is a number from 0 to 65535; 70000 is not\. Give another --port\.$"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(host: str, port: int, sentence: str) -> None:
    """What was expected, what was found, what to do."""
    with pytest.raises(UserError, match=sentence):
        _listen(host, port)


@dataclass
class Ended:
    """What was seen of a server that was ended in the middle of an answer."""

    code: int
    seconds: float
    running: str
    finished: str
    cookies: dict[str, str]
    events: list[str]
    folder: Path
    log: str
    lines: list[str]


def _end(served: Served, number: int) -> Ended:
    """Ask two things, end the server in the middle of the second answer."""
    with Visitor(served.address) as visitor:
        finished, _ = visitor.ask("/hello there")
        answers = ExitStack()
        running, _ = answers.enter_context(visitor.asking("/count 1000 0.1"))
        heard: list[str] = []
        listening = threading.Event()

        def follow() -> None:
            with visitor.client.stream("GET", "/events", params={"conversation": running}, timeout=30) as stream:
                for line in stream.iter_lines():
                    listening.set()
                    if line.startswith("event: "):
                        heard.append(line.removeprefix("event: "))

        def listen() -> None:
            with contextlib.suppress(httpx.HTTPError):  # a kill breaks the connection off
                follow()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert listening.wait(10)
        time.sleep(2.5)  # long enough for a checkpoint of the answer
        folder = Path(psutil.Process(served.process.pid).cwd())
        started = time.monotonic()
        code = served.end(number)
        seconds = time.monotonic() - started
        thread.join(10)
        cookies = dict(visitor.client.cookies)
    return Ended(code, seconds, running, finished, cookies, heard, folder, served.log, served.lines)


@pytest.fixture(scope="module")
def terminated(module_home: Path) -> Ended:
    """A server that got SIGTERM in the middle of an answer."""
    with serving(module_home) as served:
        return _end(served, signal.SIGTERM)


@pytest.fixture(scope="module")
def killed(module_home: Path, terminated: Ended) -> Ended:
    """One on the same state folder that was killed."""
    with serving(module_home) as served:
        return _end(served, signal.SIGKILL)


@pytest.fixture(scope="module")
def again(module_home: Path, terminated: Ended, killed: Ended) -> Iterator[Served]:
    """The server started once more after both."""
    with serving(module_home) as served:
        yield served


def test_sigterm_ends_it_in_time(terminated: Ended) -> None:
    """REL-12: exit code 0 within ten seconds, although pages hold streams open and an answer goes on for ever."""
    assert terminated.code == 0
    assert terminated.seconds < 10


def test_sigterm_is_quiet(terminated: Ended) -> None:
    """No traceback and no word of cancelled tasks: ending it is no error."""
    assert len(terminated.lines) == 2
    assert "Traceback" not in terminated.log
    assert "ERROR" not in terminated.log


def test_pages_hear_of_the_end(terminated: Ended) -> None:
    """The stream that wakes a page is ended first, before anybody waits for it."""
    assert terminated.events[:1] == ["started"]


def test_sigterm_leaves_no_folder(terminated: Ended) -> None:
    """The working folder for temporary files goes with the process."""
    assert terminated.folder.name.startswith("assistant-")
    assert not terminated.folder.exists()


def test_a_kill_takes_nobody_else_down(killed: Ended) -> None:
    """The next start sweeps up what a kill left (its working folder, in the place for temporary files, excepted)."""
    assert killed.code == -signal.SIGKILL
    shutil.rmtree(killed.folder)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("terminated", "The program was closed while it answered. Ask again."),
        ("killed", "The program was stopped while it answered. Ask again."),
    ],
)
def test_the_broken_answer_is_there_after_a_restart(
    again: Served, how: str, sentence: str, request: pytest.FixtureRequest
) -> None:
    """REL-12: what was streamed is kept, with a sentence that says what happened; the conversation goes on."""
    ended: Ended = request.getfixturevalue(how)
    with Visitor(again.address) as visitor:
        visitor.client.cookies.update(ended.cookies)
        shown = visitor.call("_wake", ended.running).text
        assert sentence in shown
        assert "n1 n2 n3" in shown
        assert "answer failed" in shown
        assert 'class="following" title=""' in shown
        assert visitor.ask("/count 2 0", ended.running)[1].text.count("counted.") >= 1


@pytest.mark.parametrize("how", ["terminated", "killed"])
def test_a_restart_keeps_visitors_and_conversations(again: Served, how: str, request: pytest.FixtureRequest) -> None:
    """The cookie is still good, and the list shows what it showed."""
    ended: Ended = request.getfixturevalue(how)
    with Visitor(again.address) as visitor:
        visitor.client.cookies.clear()
        visitor.client.cookies.update(ended.cookies)
        assert "set-cookie" not in visitor.client.get("/").headers
        assert set(visitor.conversations()) == {ended.running, ended.finished}
        assert "Ask me about an order" in visitor.call("_wake", ended.finished).text


def test_ctrl_c_ends_it(prepared_home: Path) -> None:
    """As a person stops it: no traceback."""
    with serving(prepared_home) as served:
        assert served.end(signal.SIGINT) == 130
        assert len(served.lines) == 2


def test_the_settings_are_checked_first(run_cli: RunCli, tmp_path: Path) -> None:
    """A wrong setting is one sentence before anything is started."""
    done = run_cli("serve", "--no-browser", home=tmp_path, ASSISTANT_SERVER__PORT="many")
    assert done.returncode == 1
    assert done.stderr.startswith("ASSISTANT_SERVER__PORT: server.port: ")
    assert len(done.stderr.splitlines()) == 1
