"""Files become documents: a table of questions and answers, or a page that is cut into passages."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.errors import UserError
from assistant.failpoints import failpoint
from assistant.knowledge import splitter
from assistant.knowledge.terms import language, terms

if TYPE_CHECKING:
    from assistant.services import Embedder

LARGEST = 64 * 1024 * 1024
"""Bytes of the largest file that is read: it is held in memory as a whole."""


class Unreadable(UserError):
    """A file that cannot become a document; the message names the line, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is found and cited: `title` and `text` are embedded and indexed together, `text` is shown.

    `start` and `end` are characters of the decoded source with `source[start:end] == text`; both 0 where the text is
    no stretch of it (a cell of a table).
    """

    key: str
    kind: Literal["entry", "passage"]
    title: str
    text: str
    start: int = 0
    end: int = 0

    @property
    def content(self) -> str:
        """What the embedder reads."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A source with its chunks; `digest` is the SHA-256 of its bytes, `tags` what else was said about it."""

    uri: str
    digest: str
    title: str
    kind: Literal["entries", "passages"]
    language: str
    chunks: tuple[Chunk, ...]
    tags: Mapping[str, Any] = field(default_factory=dict)


class _Row(BaseModel):
    """One question with its answer; further columns are kept as tags."""

    model_config = ConfigDict(extra="allow", frozen=True, str_strip_whitespace=True)

    id: str = ""
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


def digest_of(data: bytes) -> str:
    """The digest by which an unchanged file is recognised."""
    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> bytes:
    """The file's bytes; `Unreadable` where it cannot be read, or is too large to be a document."""
    failpoint("knowledge.read")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise Unreadable(f"expected a readable file, found: {error.strerror}. Check its path and who owns it") from None
    if size > LARGEST:
        raise Unreadable(f"expected at most {LARGEST >> 20} MB, found {size >> 20} MB. Split the file")
    return data


def parse(data: bytes, uri: str, embedder: Embedder, *, chunk_tokens: int) -> Document:
    """The document in a file's bytes, by the ending of `uri`; `Unreadable` says what is wrong with it.

    Needs the embedder because a passage is measured in its tokens.
    """
    ending = ending_of(uri)
    if ending not in READERS:
        raise Unreadable(f"expected one of {', '.join(READERS)}, found {ending or 'no ending'}. Convert the file first")
    source = _decoded(data)
    if not terms(source):
        raise Unreadable("expected text, found an empty file. Fill it, or leave it out")
    return READERS[ending](source, uri, digest_of(data), embedder, chunk_tokens)


def from_text(key: str, text: str, metadata: Mapping[str, Any]) -> Document:
    """A document of one passage, the text as a whole, that gives its metadata back as it is."""
    try:
        written = json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: expected metadata of JSON values, found: {error}.") from None
    return Document(
        uri=key,
        digest=digest_of(f"{text}\0{written}".encode()),
        title="",
        kind="passages",
        language=language(text),
        chunks=(Chunk(key, "passage", "", text, 0, len(text)),),
        tags={"metadata": dict(metadata)},
    )


def ending_of(uri: str) -> str:
    """The file's ending in lower case, by which its form is known."""
    return Path(uri).suffix.lower()


def _decoded(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise Unreadable(f"line {line}: expected UTF-8, found {found}. Save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Unreadable(f"line {line}: expected text, found a NUL character. Is this a text file in UTF-8?")
    return text


def _page(source: str, uri: str, digest: str, embedder: Embedder, chunk_tokens: int) -> Document:
    stem = re.sub(r"[-_\s]+", " ", Path(uri).stem).strip()
    if ending_of(uri) == ".txt":
        title, found = stem, [splitter.Section(splitter.slug(stem), (), 0, len(source))]
    else:
        title, found = splitter.sections(source, stem)
    chunks = tuple(
        Chunk(f"{uri}#{passage.anchor}", "passage", passage.title, passage.text, passage.start, passage.end)
        for passage in splitter.passages(source, title, found, embedder, chunk_tokens)
    )
    if not chunks:
        raise Unreadable("expected text below the headings, found none. Fill it, or leave it out")
    return Document(uri=uri, digest=digest, title=title, kind="passages", language=language(source), chunks=chunks)


def _csv(source: str, uri: str, digest: str, embedder: Embedder, chunk_tokens: int) -> Document:
    return _entries(_csv_rows(source), source, uri, digest)


def _jsonl(source: str, uri: str, digest: str, embedder: Embedder, chunk_tokens: int) -> Document:
    return _entries(_jsonl_rows(source), source, uri, digest)


def _csv_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(source, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = [cell.strip().lower() for cell in cells]
                missing = [name for name in ("question", "answer") if name not in columns]
                if missing:
                    raise Unreadable(
                        f"line 1: expected the columns question and answer, found {', '.join(columns)}. "
                        f"Add the column {missing[0]}, or rename the one that is meant"
                    )
            elif any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise Unreadable(
                        f"line {line}: expected {len(columns)} cells, found {len(cells)}. "
                        "Put a cell with a comma into double quotes"
                    )
                yield line, dict(zip(columns, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise Unreadable(f"line {line}: expected CSV, found {error}. Mend the quotes of that row") from None


def _jsonl_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(source.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise Unreadable(f"line {line}: expected a JSON object, found {error}. Mend that line") from None
        if not isinstance(row, dict):
            raise Unreadable(f"line {line}: expected a JSON object, found {type(row).__name__}. Mend that line")
        answers = row.pop("answers", None)
        if not row.get("answer") and isinstance(answers, list) and answers:
            row["answer"] = answers[0]
        yield line, row


def _entries(rows: Iterator[tuple[int, dict[str, Any]]], source: str, uri: str, digest: str) -> Document:
    chunks: list[Chunk] = []
    lines: dict[str, int] = {}
    extra: dict[str, dict[str, Any]] = {}
    for line, values in rows:
        row = _row(line, values)
        key = row.id or f"{uri}#{_question_digest(row.question)}"
        if key in lines:
            what = f"the id {key!r}" if row.id else "the question"
            raise Unreadable(
                f"line {line}: expected an entry once, found {what} of line {lines[key]} again. Delete one"
            )
        lines[key] = line
        chunks.append(Chunk(key, "entry", row.question, row.answer))
        more = {name: value for name, value in (row.model_extra or {}).items() if name and value not in ("", None)}
        if more:
            extra[key] = more
    if not chunks:
        raise Unreadable("expected rows with question and answer, found none. Fill the file, or leave it out")
    title = re.sub(r"[-_\s]+", " ", Path(uri).stem).strip()
    return Document(
        uri=uri,
        digest=digest,
        title=title,
        kind="entries",
        language=language(source),
        chunks=tuple(chunks),
        tags={"rows": extra} if extra else {},
    )


def _row(line: int, values: dict[str, Any]) -> _Row:
    key = values.pop("_id", None) if not values.get("id") else values.pop("id")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    try:
        return _Row.model_validate({**values, "id": key or ""})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0])
        found = "nothing" if problem["type"] == "missing" or problem["input"] == "" else repr(problem["input"])[:80]
        raise Unreadable(f"line {line}: expected a text in {name!r}, found {found}. Mend that line") from None


def _question_digest(question: str) -> str:
    return hashlib.blake2b(" ".join(terms(question)).encode(), digest_size=6).hexdigest()


READERS: dict[str, Callable[[str, str, str, Embedder, int], Document]] = {
    ".md": _page,
    ".markdown": _page,
    ".txt": _page,
    ".csv": _csv,
    ".jsonl": _jsonl,
}
"""What reads a file, by its ending."""
