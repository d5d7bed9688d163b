"""Cuts a page into passages: at its headings, and where a section is longer than the embedder reads, inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

    from assistant.services import Embedder

_LINE_END = re.compile(r"\r\n?|\n")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_SEPARATORS = ["\n\n", "\r\n\r\n", "\n", "。", "！", "？", ". ", "! ", "? ", "；", "; ", "，", ", ", " ", ""]
_SENTENCE_END = re.compile(r"[.!?]\s+|[。！？；]|\n\s*")
_LONGEST_OVERLAP = 400  # characters
_SMALLEST = 16  # tokens left for the text below a very long heading


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a source under one heading: `source[start:end]` is its text, `path` the headings above it."""

    slug: str
    path: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a source short enough to embed: `source[start:end] == text`."""

    anchor: str
    title: str
    text: str
    start: int
    end: int


def slug(heading: str) -> str:
    """A heading as an anchor: lower case, anything but letters and digits of any script as one hyphen."""
    return _NOT_ALPHANUMERIC.sub("-", heading.lower()).strip("-")


def sections(source: str, title: str) -> tuple[str, list[Section]]:
    """The page's title (its first H1, else `title`) and its sections in order, empty ones left out.

    Front matter is skipped; a `#` inside a code block is no heading.
    """
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(source)
    begin = front.end() if front else 0
    lines = [begin, *(match.end() for match in _LINE_END.finditer(source, begin))]
    headings = list(_headings(MarkdownIt("commonmark").parse(source[begin:])))
    title = next((text for level, text, _, _ in headings if level == 1 and text), title)
    found: list[Section] = []
    path: list[tuple[int, str]] = []
    start, anchor = begin, slug(title)
    for level, text, first, after in [*headings, (0, "", len(lines), 0)]:
        end = lines[first] if first < len(lines) else len(source)
        if source[start:end].strip():
            names = tuple(name for _, name in path if name)
            found.append(Section(anchor, names, start, end))
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, text))
        start = lines[after] if after < len(lines) else len(source)
        anchor = slug(text) or slug(title)
    return title, found


def passages(source: str, title: str, found: list[Section], embedder: Embedder, chunk_tokens: int) -> Iterator[Passage]:
    """The passages of each section, at most `chunk_tokens` of the embedder's tokens each, title not counted.

    A title so long that both would be cut off by the embedder leaves less for the text.
    """
    taken: set[str] = set()
    for section in found:
        # The page's own title comes first, and once.
        headings = [name for name in section.path if name != title]
        heading = " > ".join([title, *headings]) if title else " > ".join(headings)
        room = min(chunk_tokens, embedder.max_tokens - embedder.count_tokens([heading])[0])
        for start, end in _pieces(source, section, embedder, max(room, _SMALLEST)):
            anchor = _free(section.slug, taken)
            yield Passage(anchor, heading, source[start:end], start, end)


def _headings(tokens: list[Token]) -> Iterator[tuple[int, str, int, int]]:
    """(level, text, first line, line after) of the headings that stand at the page's own level."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map:
            children = inline.children or []
            text = "".join(child.content for child in children if child.type in ("text", "code_inline"))
            yield int(opening.tag[1]), " ".join(text.split()), opening.map[0], opening.map[1]


def _free(wanted: str, taken: set[str]) -> str:
    anchor, number = wanted, 2
    while anchor in taken:
        anchor, number = f"{wanted}-{number}", number + 1
    taken.add(anchor)
    return anchor


def _pieces(source: str, section: Section, embedder: Embedder, room: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a section are; each but the first begins a little before the end of the one before."""
    special = embedder.count_tokens([""])[0]

    def length(text: str) -> int:
        return max(embedder.count_tokens([text])[0] - special, 0)

    body = source[section.start : section.end]
    if length(body) <= room:
        yield section.start + len(body) - len(body.lstrip()), section.start + len(body.rstrip())
        return
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    # The splitter's own overlap would leave it open where in a repetitive text a piece comes from; without it the
    # pieces follow each other, with nothing but white space between.
    overlap = room // 8
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=room - overlap,
        chunk_overlap=0,
        length_function=length,
        separators=_SEPARATORS,
        keep_separator="end",
    )
    end = section.start
    for piece in splitter.split_text(body):
        begin = source.index(piece, end)
        before = source[max(end - _LONGEST_OVERLAP, section.start) : end] if end > section.start else ""
        starts = [match.end() for match in _SENTENCE_END.finditer(before)]
        shared = next((len(before) - at for at in starts if 0 < length(before[at:]) <= overlap), None)
        yield (begin if shared is None else end - shared), begin + len(piece)
        end = begin + len(piece)
