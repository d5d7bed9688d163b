"""The command line: the same capabilities from a terminal. `--json` prints one document on standard output and nothing else."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant.errors import PluginError, UserError
from assistant.identity import LOCAL, authorize
from assistant.settings import Settings, home_folder, load

if TYPE_CHECKING:
    from assistant.app import Assistant

app = typer.Typer(
    name="assistant",
    help="A chat assistant made of plugins. It runs on this machine alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
knowledge_app = typer.Typer(help="What questions are answered from.", no_args_is_help=True, rich_markup_mode=None)
models_app = typer.Typer(help="The models in place.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(knowledge_app, name="knowledge")
app.add_typer(models_app, name="models")

Home = Annotated[
    Path | None,
    typer.Option("--home", help="State folder; otherwise ASSISTANT_HOME, otherwise var.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Collection = Annotated[str, typer.Option("--collection", help="Which collection; otherwise the one of the settings.")]


@app.command()
def serve(
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on; otherwise the settings'.")] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; otherwise the settings'.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Put in place what is missing, then serve the page until Ctrl-C."""
    from assistant.server import run

    authorize(LOCAL, "server.run")
    settings = load(home_folder(home))
    server = settings.server.model_copy(
        update={"host": host or settings.server.host, "port": settings.server.port if port is None else port}
    )
    run(home_folder(home), settings.model_copy(update={"server": server}), browser=browser, report=_report)


@app.command()
def setup(home: Home = None) -> None:
    """Put the base models and the demo shop in place; `serve` does it too."""
    from assistant.setup import prepare

    with _assistant(home, "server.run") as assistant:
        prepare(assistant, _report)


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="The question.")],
    home: Home = None,
    plugin: Annotated[str, typer.Option(help="Which plugin answers; otherwise the router chooses.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the plugin, NAME=VALUE; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question in a new conversation."""
    from assistant.messages import Failure, Incoming, Sources, Text, to_log

    options: dict[str, Any] = {}
    for pair in option or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--option: expected NAME=VALUE, found {pair!r}.")
        options[name] = value
    with _assistant(home, "conversation.create") as assistant:
        incoming = Incoming(text=text, identity=LOCAL, plugin=plugin, options=options)
        reply = assistant.ask(incoming)
    failures = [event for event in reply.events if isinstance(event, Failure)]
    if as_json:
        _print_json(
            {
                "plugin": reply.route.plugin,
                "route": {"reason": reply.route.reason, "score": reply.route.score},
                "text": reply.text,
                "events": [to_log(event) for event in reply.events],
                "sources": [to_log_source(source) for source in reply.sources],
                "conversation": reply.conversation,
                "turn": reply.turn,
            }
        )
    else:
        if reply.text:
            _print(reply.text)
        for number, source in enumerate(reply.sources, 1):
            _print(f"[{number}] {source.title}  ({source.id}, {source.score:.2f})")
        for event in reply.events:
            if not isinstance(event, Text | Failure | Sources):
                _print(json.dumps(to_log(event), ensure_ascii=False))
    for failure in failures:
        reference = f" Reference: {failure.reference}" if failure.reference else ""
        _complain(failure.message + reference)
    if failures:
        raise typer.Exit(1)


@app.command("plugins")
def plugins_command(home: Home = None, as_json: AsJson = False) -> None:
    """List the plugins that are loaded, and those that are not with the reason."""
    with _assistant(home, "plugin.list") as assistant:
        loaded = [
            {
                "name": name,
                "summary": entry.plugin.summary,
                "role": entry.plugin.role.name.lower(),
                "origin": entry.origin,
            }
            for name, entry in assistant.registry.loaded.items()
        ]
        rejected = [asdict(entry) for entry in assistant.registry.rejected]
    if as_json:
        _print_json({"loaded": loaded, "rejected": rejected})
        return
    _table(["name", "role", "summary"], [[p["name"], p["role"], p["summary"]] for p in loaded])
    if rejected:
        _print("\nNot loaded:")
        _table(["name", "reason", "origin"], [[p["name"], p["reason"], p["origin"]] for p in rejected])


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Say what this installation has, and what to do where something is wrong; exit code 1 if anything is."""
    from assistant.doctor import examine

    authorize(LOCAL, "server.run")
    folder = home_folder(home)
    rows = examine(folder, load(folder))
    if as_json:
        _print_json({"rows": [asdict(row) for row in rows]})
    else:
        _table(["", "what", "found", "what to do"], [[row.state, row.name, row.found, row.cure] for row in rows])
    if any(row.state == "bad" for row in rows):
        raise typer.Exit(1)


@app.command(hidden=True)
def docs(check: Annotated[bool, typer.Option("--check", help="Only say whether they are up to date.")] = False) -> None:
    """Write the generated pages of docs/, or check that they are fresh."""
    from assistant.reference import stale, write

    if not check:
        write(app)
    elif pages := stale(app):
        raise UserError(f"{', '.join(pages)}: not what the code says. Run `assistant docs` and commit the result.")


@knowledge_app.command("add")
def knowledge_add(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: Markdown, text, CSV or JSONL tables.")],
    home: Home = None,
    collection: Collection = "",
    as_json: AsJson = False,
) -> None:
    """Add files, or bring them up to date; files that cannot be read are named and the rest goes in."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
    with _assistant(home, "knowledge.write") as assistant:
        added = assistant.knowledge.add(
            paths, collection=collection, owner=LOCAL.id, report=None if as_json else _report
        )
    if as_json:
        _print_json(
            {
                "documents": [
                    {
                        "path": str(a.path), "uri": a.uri, "id": a.document, "status": a.status, "chunks": a.chunks,
                        "problem": a.problem,
                    }
                    for a in added
                ]
            }
        )  # fmt: skip
    else:
        _table(
            ["status", "chunks", "document", "problem"], [[a.status, str(a.chunks), a.uri, a.problem] for a in added]
        )
    if any(a.status == "failed" for a in added):
        raise typer.Exit(1)


@knowledge_app.command("list")
def knowledge_list(home: Home = None, collection: Collection = "", as_json: AsJson = False) -> None:
    """List the documents of a collection."""
    with _assistant(home, "knowledge.read") as assistant:
        documents = assistant.knowledge.documents(collection)
    rows = [
        {"id": d.id, "uri": d.uri, "title": d.title, "kind": d.kind, "language": d.language, "chunks": d.chunks}
        for d in documents
    ]
    if as_json:
        _print_json({"documents": rows})
    elif rows:
        _table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    else:
        _print("There are no documents. `assistant knowledge add PATH` adds some.")


@knowledge_app.command("remove")
def knowledge_remove(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A document's id or uri, or a chunk's id.")],
    home: Home = None,
    collection: Collection = "",
) -> None:
    """Remove a document, or one chunk; from then on nothing is answered from it."""
    with _assistant(home, "knowledge.write") as assistant:
        removed = assistant.knowledge.remove(identifier, collection=collection)
    _print(f"Removed {removed} chunk{'' if removed == 1 else 's'}.")


@knowledge_app.command("search")
def knowledge_search(
    query: Annotated[str, typer.Argument(help="The question.")],
    home: Home = None,
    collection: Collection = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many hits.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what a question finds, with the scores behind it."""
    with _assistant(home, "knowledge.search") as assistant:
        found = assistant.knowledge.search(query, collection=collection, limit=limit)
    hits = [
        {
            "id": h.id, "document": h.document, "kind": h.kind, "title": h.title, "passage": h.text, "score": h.score,
            "uri": h.uri, "trace": dict(h.trace),
        }
        for h in found.hits
    ]  # fmt: skip
    if as_json:
        _print_json({"hits": hits, "threshold": found.threshold, "sequence": found.sequence})
        return
    rows = [[f"{h.score:.2f}", "yes" if h.score >= found.threshold else "no", h.id, h.title] for h in found.hits]
    _table(["score", "answers", "id", "title"], rows)


@knowledge_app.command("calibrate")
def knowledge_calibrate(
    questions: Annotated[
        Path, typer.Argument(help="JSONL with `question` and `answers`: the ids that answer, or none.")
    ],
    home: Home = None,
    collection: Collection = "",
) -> None:
    """Fit scores and threshold to questions whose answers are known."""
    with _assistant(home, "knowledge.write") as assistant:
        report = assistant.knowledge.calibrate(questions, collection=collection)
    _print_json(report.model_dump(mode="json"))


@models_app.command("list")
def models_list(home: Home = None, as_json: AsJson = False) -> None:
    """List the models that are in place and those that can be put there."""
    with _assistant(home, "model.read") as assistant:
        installed = assistant.models.list()
    rows = [
        {
            "name": m.name, "version": m.version, "kind": m.kind, "licence": m.licence, "size": m.size,
            "parameters": m.parameters, "current": m.current, "in_place": m.in_place, "problem": m.problem,
        }
        for m in installed
    ]  # fmt: skip
    if as_json:
        _print_json({"models": rows})
        return
    _table(
        ["name", "version", "kind", "licence", "MB", ""],
        [
            [
                m.name,
                m.version or "-",
                m.kind,
                m.licence,
                f"{m.size / 1e6:.0f}",
                _standing(m.current, m.in_place, m.problem),
            ]
            for m in installed
        ],
    )


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A name of `models list`.")], home: Home = None) -> None:
    """Put a base model in place, checked and ready to serve."""
    with _assistant(home, "model.write") as assistant:
        assistant.models.pull(name, report=_report)


def main() -> None:
    """Run the command line; what the user can mend is one sentence on standard error and exit code 1."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].setLevel(logging.WARNING)
    try:
        app()
    except (UserError, PluginError) as error:
        _complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Nothing is fetched and nothing is reported after installation; an operator may set these otherwise."""


@contextmanager
def _assistant(home: Path | None, action: str) -> Iterator[Assistant]:
    """The assistant, closed at the end; what plugins print goes to standard error, where it cannot break a document."""
    from assistant.app import Assistant

    authorize(LOCAL, action)
    folder = home_folder(home)
    settings: Settings = load(folder)
    with redirect_stdout(sys.stderr):
        assistant = Assistant(folder, settings)
        try:
            yield assistant
        finally:
            assistant.close()


def to_log_source(source: Any) -> dict[str, Any]:
    """A source as the JSON interface gives it: id, title, passage, score, uri."""
    return {name: getattr(source, name) for name in ("id", "title", "passage", "score", "uri")}


def _standing(current: bool, in_place: bool, problem: str) -> str:
    if problem:
        return problem
    return "current" if current else "in place" if in_place else "not in place"


def _print(text: str) -> None:
    typer.echo(text)


def _report(line: str) -> None:
    typer.echo(line, err=True)


def _complain(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def _table(headings: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(value.replace("[", r"\[") for value in row))
    Console().print(table)
