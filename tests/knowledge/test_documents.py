"""Files as documents, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from assistant.errors import UserError
from assistant.knowledge import documents
from assistant.knowledge.documents import Document, Unreadable

from .doubles import HashEmbedder


def parse(text: str | bytes, uri: str) -> Document:
    data = text if isinstance(text, bytes) else text.encode()
    return documents.parse(data, uri, HashEmbedder(), chunk_tokens=64)


def test_csv_row_is_an_entry_under_its_id() -> None:
    found = parse("id,question,answer,category\nr1,How long?,Five days.,refunds\n", "faq.csv")
    assert [(c.key, c.kind, c.title, c.text) for c in found.chunks] == [("r1", "entry", "How long?", "Five days.")]
    assert (found.kind, found.title, found.tags) == ("entries", "faq", {"rows": {"r1": {"category": "refunds"}}})


def test_csv_reads_bom_quotes_and_line_ends_of_spreadsheets() -> None:
    found = parse('\ufeffQuestion,Answer\r\n"Why, oh?","Line one\r\nline ""two"""\r\n\r\n', "faq.csv")
    assert [(c.title, c.text) for c in found.chunks] == [("Why, oh?", 'Line one\r\nline "two"')]


def test_row_without_id_is_known_by_its_question_however_it_is_spaced() -> None:
    one, other = parse("question,answer\nHow  LONG?,a\n", "f.csv"), parse("question,answer\nhow long,b\n", "f.csv")
    assert one.chunks[0].key == other.chunks[0].key
    assert one.chunks[0].key.startswith("f.csv#")
    assert len(one.chunks[0].key) == len("f.csv#") + 12


def test_jsonl_takes_the_first_of_several_answers_and_numbers_as_ids() -> None:
    found = parse(
        '{"_id": 7, "question": "q?", "answers": ["a", "b"]}\n\n{"question": "w?", "answer": "c"}\n', "f.jsonl"
    )
    assert (found.chunks[0].key, found.chunks[0].text) == ("7", "a")
    assert found.chunks[1].text == "c"


def test_text_file_is_one_passage_titled_by_its_name() -> None:
    found = parse("All of it.\n", "house_rules.txt")
    assert [(c.key, c.kind, c.title, c.text) for c in found.chunks] == [
        ("house_rules.txt#house-rules", "passage", "house rules", "All of it.")
    ]


def test_chinese_page_is_marked_so() -> None:
    assert parse("# 退货\n\n三十天内可以退货。\n", "r.md").language == "zh"


@pytest.mark.parametrize(
    ("data", "uri", "parts"),
    [
        (b"ok\n\xff\xfe", "a.md", ["line 2", "expected UTF-8", "0xff"]),
        (b"a\n\x00b", "a.txt", ["line 2", "NUL"]),
        ("", "a.md", ["expected text", "empty"]),
        (" \n .\n", "a.csv", ["expected text", "empty"]),
        ("# Only\n\n## Headings\n", "a.md", ["below the headings"]),
        ("x", "a.pdf", [".md", "found .pdf"]),
        ("x", "README", ["no ending"]),
        ("frage,antwort\na,b\n", "a.csv", ["line 1", "question and answer", "frage, antwort"]),
        ("question,answer\n", "a.csv", ["found none"]),
        ("question,answer\na,b,c\n", "a.csv", ["line 2", "expected 2 cells, found 3"]),
        ("question,answer\na,b\n,c\n", "a.csv", ["line 3", "'question'", "found nothing"]),
        ('question,answer\na,"b\n', "a.csv", ["line 2", "expected CSV"]),
        ('question,answer\n"a\nb",c\nd\n', "a.csv", ["line 4", "found 1"]),
        ("id,question,answer\nx,a,b\nx,c,d\n", "a.csv", ["line 3", "'x'", "line 2"]),
        ("question,answer\nA?,b\na,d\n", "a.csv", ["line 3", "the question of line 2"]),
        ('{"question": "a", "answer": "b"}\n{"question": \n', "a.jsonl", ["line 2", "expected a JSON object"]),
        ("[1]\n", "a.jsonl", ["line 1", "found list"]),
        ('{"question": "a", "answers": []}\n', "a.jsonl", ["line 1", "'answer'", "found nothing"]),
        ('{"question": ["a"], "answer": "b"}\n', "a.jsonl", ["line 1", "'question'", "['a']"]),
        ('{"a": ' + "[" * 100_000, "a.jsonl", ["line 1", "expected a JSON object"]),
    ],
)
def test_bad_file_says_where_and_what(data: str | bytes, uri: str, parts: list[str]) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(data, uri)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == []


def test_unreadable_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        documents.read(tmp_path / "absent.md")


def test_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST", 1024 * 1024)
    path = tmp_path / "large.txt"
    path.write_bytes(b"a" * (1024 * 1024 + 1))
    with pytest.raises(Unreadable, match="at most 1 MB"):
        documents.read(path)


def test_metadata_that_is_no_json_is_refused() -> None:
    with pytest.raises(UserError, match="expected metadata of JSON values"):
        documents.from_text("k", "text", {"when": object()})
