"""Events as HTML: a renderer for each kind, and the one sanitizer that all of it passes.

Text of messages, documents, file names and plugins is data. It is escaped or read as Markdown without HTML and images, and
the finished answer goes through an allow-list, so that a mistake above cannot let a script or a foreign request through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt

from assistant.chatlog import Entry, State
from assistant.messages import (
    Actions,
    Choices,
    Entities,
    Event,
    Failure,
    File,
    Handoff,
    Job,
    Labels,
    Progress,
    Route,
    Sources,
    Table,
    Text,
)

_TAGS = {
    *(
        "p",
        "br",
        "hr",
        "em",
        "strong",
        "del",
        "s",
        "code",
        "pre",
        "blockquote",
        "ul",
        "ol",
        "li",
        "a",
        "h1",
        "h2",
        "h3",
        "h4",
    ),
    *(
        "h5",
        "h6",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "caption",
        "div",
        "span",
        "details",
        "summary",
        "mark",
        "small",
    ),
    *("button", "meter", "progress", "figure", "figcaption"),
}
_ATTRIBUTES = {
    "*": {"class", "title"},
    "a": {"href", "download"},
    "button": {"type", "value"},
    "meter": {"value", "min", "max"},
    "progress": {"value", "max"},
    "ol": {"start"},
}
_REASONS = {
    "explicit": "you chose it",
    "command": "you typed its command",
    "floor": "it had asked a question",
    "guess": "the message is like its examples",
    "fallback": "nothing else fitted better",
}


def render_entry(entry: Entry) -> str:
    """A logged message as the chat shows it."""
    if entry.role == "user":
        return clean(f'<div class="said">{_plain(entry.text)}</div>')
    return render_answer(entry.events, entry.state, entry.route, message=entry.id)


def render_answer(events: tuple[Event, ...], state: State, route: Route | None, *, message: str = "") -> str:
    """An answer so far: texts first as they came, sources under them, the route in a folded line.

    The browser sends an answer back as this HTML when a thumb is clicked, so it names the message: see `rendered_id`.
    """
    parts = [render(event) for event in events if not isinstance(event, Sources)]
    if state in ("pending", "streaming") and not any(isinstance(event, Progress) for event in events):
        parts.append('<p class="waiting" title="The answer is on its way">…</p>')
    if state == "stopped":
        parts.append('<p class="note">You stopped this answer.</p>')
    parts += [render(event) for event in events if isinstance(event, Sources)]
    if route is not None and state not in ("pending", "streaming"):
        parts.append(_route(route))
    return clean(f'<div class="answer {state} id-{message}">{"".join(parts)}</div>')


def rendered_id(html: object) -> str:
    """The id of the message that `render_answer` made `html` of, "" where it did not; texts inside it cannot change it."""
    found = _RENDERED.match(html) if isinstance(html, str) else None
    return found[1] if found else ""


def render(event: Event) -> str:
    """One event as HTML, before the sanitizer."""
    return RENDERERS[type(event)](event)


def clean(html: str) -> str:
    """The sanitizer. One line comes back, so that a Markdown reader behind it sees one block of HTML."""
    safe = nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        attribute_filter=_checked_attribute,
        link_rel="noopener noreferrer nofollow",
    )
    return safe.replace("\r", "").replace("\n", "&#10;")


def _checked_attribute(tag: str, name: str, value: str) -> str | None:
    """The attribute's value, or None to drop it: a link leads to a site, an address to write to, or a file of ours."""
    return None if name == "href" and not _LINK.match(value) else value


def _text(event: Text) -> str:
    return str(_markdown().render(event.text))


def _entities(event: Entities) -> str:
    parts, at = [], 0
    for span in sorted(event.spans, key=lambda span: span.start):
        if span.start < at:
            continue  # a span inside another is in the table, not in the running text
        label = f"{escape(span.label)}, {span.score:.0%}"
        marked = escape(event.text[span.start : span.end])
        parts.append(escape(event.text[at : span.start]))
        parts.append(f'<mark class="entity" title="{label}">{marked} <small>{escape(span.label)}</small></mark>')
        at = span.end
    parts.append(escape(event.text[at:]))
    return f'<p class="entities">{"".join(parts)}</p>{_model(event.model)}'


def _labels(event: Labels) -> str:
    rows = "".join(
        f'<li><span>{escape(label.name)}</span> <meter min="0" max="1" value="{label.score:.4f}"></meter> {label.score:.0%}</li>'
        for label in event.labels
    )
    return f'<ol class="labels">{rows}</ol>{_model(event.model)}'


def _sources(event: Sources) -> str:
    if not event.sources:
        return ""
    rows = "".join(
        f'<li><details><summary>{escape(source.title)} <small title="Probability that this passage answers">'
        f"{source.score:.0%}</small></summary><blockquote>{_markdown().render(source.passage)}</blockquote>"
        f"<small>{escape(source.id)}{_where(source.id, source.uri)}</small></details></li>"
        for source in event.sources
    )
    return (
        f'<div class="sources"><small>{"Source" if len(event.sources) == 1 else "Sources"}</small><ol>{rows}</ol></div>'
    )


def _where(identifier: str, uri: str) -> str:
    return f" · {escape(uri)}" if uri and not identifier.startswith(uri) else ""


def _table(event: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in event.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in event.rows
    )
    caption = f"<caption>{escape(event.title)}</caption>" if event.title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _choices(event: Choices) -> str:
    buttons = "".join(
        f'<button type="button" class="choice" value="{escape(choice.text)}" title="{escape(choice.plugin)}">'
        f"{escape(choice.label)}</button>"
        for choice in event.choices
    )
    return f'<div class="choices"><p>{_plain(event.prompt)}</p>{buttons}</div>'


def _actions(event: Actions) -> str:
    buttons = "".join(
        f'<button type="button" class="action" value="{escape(action.confirm)}" title="{escape(action.name)}">'
        f"{escape(action.label)}</button>"
        for action in event.actions
    )
    return f'<div class="actions">{buttons}</div>'


def _job(event: Job) -> str:
    return f'<p class="job">Job <code>{escape(event.id)}</code></p>'


def _file(event: File) -> str:
    name = escape(event.name)
    if not event.id:
        return f'<p class="file">{name}</p>'
    return f'<p class="file"><a href="/files/{escape(event.id)}" download="{name}">{name}</a></p>'


def _progress(event: Progress) -> str:
    value = "" if event.fraction is None else f' value="{event.fraction:.3f}" max="1"'
    return f'<p class="progress"><progress{value}></progress> {escape(event.text)}</p>'


def _handoff(event: Handoff) -> str:
    return f'<p class="handoff"><strong>A person takes over.</strong> {escape(event.reason)}</p>'


def _failure(event: Failure) -> str:
    reference = f" <small>Reference <code>{escape(event.reference)}</code></small>" if event.reference else ""
    return f'<p class="failure">{escape(event.message)}{reference}</p>'


def _route(route: Route) -> str:
    why = _REASONS[route.reason]
    return (
        f'<details class="trace"><summary>Answered by {escape(route.plugin)}</summary>'
        f"<p>Chosen because {why} (rule {route.reason}, {route.score:.0%}).</p></details>"
    )


def _model(model: str) -> str:
    return f'<p class="model"><small>{escape(model)}</small></p>' if model else ""


def _plain(text: str) -> str:
    return escape(text).replace("\n", "<br>")


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    return markdown.disable(["image", "html_block", "html_inline"])


RENDERERS: Mapping[type[Event], Callable[[Any], str]] = {
    Text: _text,
    Entities: _entities,
    Labels: _labels,
    Sources: _sources,
    Table: _table,
    Choices: _choices,
    Actions: _actions,
    Job: _job,
    File: _file,
    Progress: _progress,
    Handoff: _handoff,
    Failure: _failure,
}

_RENDERED = re.compile(r'<div class="answer [a-z]+ id-([0-9a-f]{32})">')
_LINK = re.compile(r"https?://|mailto:|/files/[0-9a-f]{32}$", re.IGNORECASE)
_SPACES = re.compile(r"\s+")


def one_line(text: str, length: int = 48) -> str:
    """A title for a list: white space folded, cut with an ellipsis."""
    text = _SPACES.sub(" ", text).strip()
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
