"""The command line as another program meets it: documents on standard output, sentences on standard error, exit codes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from assistant.messages import EVENTS

pytestmark = pytest.mark.models
Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
QUESTION = "how long do I have to send something back?"
NOISY = """
print("loading")

from assistant import Options, Plugin, Text


class Noisy(Plugin[Options]):
    name = "noisy"
    summary = "Prints what it should not."

    def handle(self, request, options):
        print("answering")
        yield Text("quiet")
"""


def document(result: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """The one document on standard output."""
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


def refused(result: subprocess.CompletedProcess[str], sentence: str) -> None:
    """One sentence on standard error, nothing on standard output, no traceback, exit code 1."""
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip() == sentence


# ask


def test_ask_gives_the_keys_that_it_promises(module_home: Path, run_cli: Run) -> None:
    answer = document(run_cli("ask", QUESTION, "--json", home=module_home))
    assert list(answer) == ["plugin", "route", "text", "events", "sources", "conversation", "turn"]
    assert list(answer["route"]) == ["reason", "score"]
    assert answer["plugin"] == "support"
    assert answer["route"]["reason"] in ("guess", "fallback")
    assert 0 <= answer["route"]["score"] <= 1
    assert answer["sources"], "the demo shop answers that"
    for source in answer["sources"]:
        assert list(source) == ["id", "title", "passage", "score", "uri"]
        assert 0 <= source["score"] <= 1
    assert answer["text"] == answer["sources"][0]["passage"]
    assert {event["type"] for event in answer["events"]} == {"sources", "text"} <= set(EVENTS)
    assert answer["text"] == "".join(event["text"] for event in answer["events"] if event["type"] == "text")
    assert len(answer["conversation"]) == len(answer["turn"]) == 32


def test_ask_prints_the_answer_and_its_sources(module_home: Path, run_cli: Run) -> None:
    result = run_cli("ask", QUESTION, home=module_home)
    assert (result.returncode, result.stderr) == (0, "")
    assert "[1] " in result.stdout
    assert "{" not in result.stdout


def test_ask_answers_the_readmes_question_from_the_right_entry(module_home: Path, run_cli: Run) -> None:
    answer = document(run_cli("ask", QUESTION, "--json", home=module_home))
    assert answer["sources"][0]["id"] == "return-window"
    assert answer["text"] == answer["sources"][0]["passage"]


def test_ask_says_what_it_does_not_know(module_home: Path, run_cli: Run) -> None:
    answer = document(run_cli("ask", "what is the boiling point of mercury", "--json", home=module_home))
    assert answer["text"].startswith("I don't know")
    assert answer["sources"] == []
    assert [event["type"] for event in answer["events"]] == ["sources", "text"]


def test_ask_takes_a_plugin_and_its_options(module_home: Path, run_cli: Run) -> None:
    result = run_cli("ask", QUESTION, "--plugin", "support", "--option", "limit=1", "--json", home=module_home)
    answer = document(result)
    assert answer["route"] == {"reason": "explicit", "score": 1.0}
    assert len(answer["sources"]) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--option", "limit"], "--option: expected NAME=VALUE, found 'limit'."),
        (["--option", "=3"], "--option: expected NAME=VALUE, found '=3'."),
    ],
    ids=["no value", "no name"],
)
def test_an_option_that_is_no_pair_is_refused(
    arguments: list[str], sentence: str, module_home: Path, run_cli: Run
) -> None:
    refused(run_cli("ask", QUESTION, *arguments, "--json", home=module_home), sentence)


def test_an_empty_question_is_refused(module_home: Path, run_cli: Run) -> None:
    refused(run_cli("ask", " ", "--json", home=module_home), "The message is empty. Type a question.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plugin", "suport"], "There is no plugin /suport here. These are: /hello, /support."),
        (
            ["--plugin", "support", "--option", "limit=99"],
            "Option limit of support: Input should be less than or equal to 10. Its options are: limit, collection.",
        ),
    ],
    ids=["unknown plugin", "wrong option"],
)
def test_an_answer_that_failed_is_a_document_and_a_sentence(
    arguments: list[str], sentence: str, module_home: Path, run_cli: Run
) -> None:
    result = run_cli("ask", QUESTION, *arguments, "--json", home=module_home)
    answer = document(result, 1)
    assert answer["events"] == [{"type": "failure", "message": sentence, "reference": ""}]
    assert answer["text"] == ""
    assert result.stderr.strip() == sentence


# plugins


def test_plugins_lists_those_that_are_there_and_those_that_are_not(
    tmp_path: Path, module_home: Path, run_cli: Run
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    environment = {
        "ASSISTANT_PLUGINS__FOLDERS": json.dumps([str(tmp_path)]),
        "ASSISTANT_PLUGINS__DISABLED": '["hello"]',
    }
    result = run_cli("plugins", "--json", home=module_home, **environment)
    found = document(result)
    assert list(found) == ["loaded", "rejected"]
    assert [plugin["name"] for plugin in found["loaded"]] == ["support"]
    assert list(found["loaded"][0]) == ["name", "summary", "role", "origin"]
    assert found["loaded"][0]["role"] == "customer"
    assert [(plugin["name"], plugin["reason"]) for plugin in found["rejected"]] == [
        ("hello", "disabled in the settings"),
        ("broken", "ZeroDivisionError: division by zero (line 1 of broken.py)"),
    ]
    assert "plugin broken" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plugin_that_prints_does_not_break_the_document(tmp_path: Path, module_home: Path, run_cli: Run) -> None:
    (tmp_path / "noisy.py").write_text(NOISY, encoding="utf-8")
    folders = {"ASSISTANT_PLUGINS__FOLDERS": json.dumps([str(tmp_path)])}
    result = run_cli("ask", "x", "--plugin", "noisy", "--json", home=module_home, **folders)
    assert document(result)["text"] == "quiet"
    assert result.stderr == "loading\nanswering\n"


def test_both_names_of_the_program_are_the_same(module_home: Path, run_cli: Run) -> None:
    program = Path(sys.executable).parent / "assistant"
    command = [str(program), "plugins", "--json", "--home", str(module_home)]
    other = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert document(other) == document(run_cli("plugins", "--json", home=module_home))


# knowledge


def test_knowledge_is_added_listed_found_and_removed(tmp_path: Path, prepared_home: Path, run_cli: Run) -> None:
    page = tmp_path / "robots.md"
    page.write_text("# Robots\n\nThe vacuum robot climbs thresholds of two centimetres.\n", encoding="utf-8")
    added = document(run_cli("knowledge", "add", str(page), "--json", home=prepared_home))
    (one,) = added["documents"]
    assert list(one) == ["path", "uri", "id", "status", "chunks", "problem"]
    assert (one["path"], one["status"], one["chunks"], one["problem"]) == (str(page), "added", 1, "")

    listed = document(run_cli("knowledge", "list", "--json", home=prepared_home))["documents"]
    assert list(listed[0]) == ["id", "uri", "title", "kind", "language", "chunks"]
    assert one["id"] in {entry["id"] for entry in listed}

    query = ("knowledge", "search", "how high can the vacuum robot climb", "--limit", "2", "--json")
    found = document(run_cli(*query, home=prepared_home))
    assert list(found) == ["hits", "threshold", "sequence"]
    assert list(found["hits"][0]) == ["id", "document", "kind", "title", "passage", "score", "uri", "trace"]
    assert found["hits"][0]["document"] == one["id"]
    assert len(found["hits"]) == 2

    removed = run_cli("knowledge", "remove", one["id"], home=prepared_home)
    assert (removed.returncode, removed.stdout) == (0, "Removed 1 chunk.\n")
    after = document(run_cli(*query, home=prepared_home))
    assert one["id"] not in {hit["document"] for hit in after["hits"]}
    assert after["sequence"] > found["sequence"]


def test_scores_are_fitted_to_known_answers_and_said(prepared_home: Path, run_cli: Run) -> None:
    questions = Path(__file__).parent.parent / "data" / "golden" / "en" / "calibrate.jsonl"
    fitted = document(run_cli("knowledge", "calibrate", str(questions), home=prepared_home))
    found = document(run_cli("knowledge", "search", QUESTION, "--json", home=prepared_home))
    assert fitted["fitted_on"]["questions"] == 100
    assert found["threshold"] == fitted["threshold"]


def test_a_path_that_is_not_there_is_refused(module_home: Path, run_cli: Run) -> None:
    missing = str(module_home / "nowhere.md")
    result = run_cli("knowledge", "add", missing, "--json", home=module_home)
    refused(result, f"{missing}: there is no such file or folder.")


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_in(
    tmp_path: Path, prepared_home: Path, run_cli: Run
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "good.md").write_text("# Good\n\nThis one can be read.\n", encoding="utf-8")
    (pages / "bad.md").write_bytes(b"# \xff\xfe\x00 not text")
    result = run_cli("knowledge", "add", str(pages), "--json", home=prepared_home)
    status = {Path(one["path"]).name: one for one in document(result, 1)["documents"]}
    assert status["good.md"]["status"] == "added"
    assert status["bad.md"]["status"] == "failed"
    assert status["bad.md"]["problem"]


def test_removing_what_is_not_there_is_refused(module_home: Path, run_cli: Run) -> None:
    result = run_cli("knowledge", "remove", "no-such-thing", home=module_home)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no-such-thing" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# Faults of the caller


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["ask"],
        ["ask", "a", "b"],
        ["ask", "x", "--nonsense"],
        ["knowledge", "search", "x", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "assistant", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was made"


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["ask", "-h"], ["knowledge", "-h"]], ids=" ".join)
def test_help_is_on_standard_output(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "assistant", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")


def test_a_state_folder_that_is_a_file_is_one_sentence(tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "file").touch()
    sentence = f"{tmp_path / 'file'}: expected a folder for the state, found: File exists. Give another --home."
    refused(run_cli("plugins", home=tmp_path / "file"), sentence)


def test_a_mistake_in_the_settings_is_one_sentence(tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("plugins", home=tmp_path, ASSISTANT_SERVER__PROT="1")
    sentence = "ASSISTANT_SERVER__PROT: there is no setting server.prot. settings.default.toml lists them all."
    refused(result, sentence)


def test_a_database_of_a_newer_program_is_one_sentence(tmp_path: Path, run_cli: Run) -> None:
    assert run_cli("plugins", home=tmp_path).returncode == 0
    with sqlite3.connect(tmp_path / "assistant.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    result = run_cli("plugins", home=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("The state folder was written by a newer program: its schema is 9999")
    assert len(result.stderr.strip().splitlines()) == 1
