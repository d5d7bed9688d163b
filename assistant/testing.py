"""What a plugin's author tests with: the contract as a test class, fakes of the services, a chat to talk to. A pytest plugin."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import pytest

from assistant.errors import ModelMissing, UserError
from assistant.identity import Identity, Role
from assistant.messages import Event, Failure, Incoming, Message, Reply, Request, from_log, to_log
from assistant.plugin import Plugin, check
from assistant.services import Hit, Hits
from assistant.settings import PluginsSection, Settings
from assistant.turns import drain_into

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from assistant.app import Assistant

M = TypeVar("M")
_WORD = re.compile(r"\w+")
SERVICES = ("config", "knowledge", "models", "log")
HOSTILE = (
    "?",
    "<script>alert(1)</script>",
    "=1+1",
    "😀" * 50,
    "a" * 5000,
    "退货要多久？",
    "\u202eabc",
    "line\nline\n\nline",
)


def make_request(text: str, **more: Any) -> Request:
    """A request as the host would make it; any field can be given."""
    fields: dict[str, Any] = {"id": "turn", "conversation": "conversation", "identity": Identity("tester")}
    return Request(text=text, **(fields | more))


@dataclass
class FakeKnowledge:
    """A knowledge base of a few entries; a hit's score is the share of the question's words that it holds."""

    entries: Sequence[tuple[str, str]] = (("How long may I keep it?", "You may return it within thirty days."),)
    threshold: float = 0.5

    def search(self, query: str, *, collection: str = "", limit: int = 5) -> Hits:
        """See `assistant.KnowledgeBase`."""
        wanted = set(_WORD.findall(query.lower()))
        hits = []
        for number, (title, text) in enumerate(self.entries):
            words = set(_WORD.findall(f"{title} {text}".lower()))
            score = len(wanted & words) / max(1, len(wanted))
            hits.append(
                Hit(id=f"entry-{number}", document="entries", kind="entry", title=title, text=text, score=score)
            )
        hits.sort(key=lambda hit: -hit.score)
        return Hits(hits=tuple(hits[:limit]), threshold=self.threshold, sequence=1)


class HashEmbedder:
    """Vectors of hashed words: the same text is always the same vector, and shared words bring texts together."""

    name = "hash"
    max_tokens = 256

    def __init__(self, dimension: int = 64, salt: str = "") -> None:
        self.dimension = dimension
        self.digest = hashlib.sha256(f"hash {dimension} {salt}".encode()).hexdigest()
        self._salt = salt

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `assistant.Embedder`."""
        return self.embed_documents(texts)

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `assistant.Embedder`."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()) or [""]:
                value = int.from_bytes(hashlib.blake2b(f"{self._salt}{word}".encode(), digest_size=8).digest(), "big")
                vectors[row, value % self.dimension] += 1.0 if value >> 63 else -1.0
            vectors[row, 0] += 1e-3  # never a zero vector
        return cast("NDArray[np.float32]", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `assistant.Embedder`."""
        return [len(_WORD.findall(text)) + 2 for text in texts]


@dataclass
class FakeModels:
    """Models by name; `borrowed` counts those that are out, `uses` how often each was asked for."""

    models: dict[str, Any] = field(default_factory=lambda: {"all-minilm-l6-v2": HashEmbedder()})
    borrowed: int = 0
    uses: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def use(self, name: str, kind: type[M]) -> Iterator[M]:
        """See `assistant.ModelStore`."""
        if name not in self.models:
            raise ModelMissing(f"{name} is not in place: run `assistant models pull {name}`.")
        self.borrowed += 1
        self.uses[name] = self.uses.get(name, 0) + 1
        try:
            yield self.models[name]
        finally:
            self.borrowed -= 1


@dataclass
class FakeLog:
    """A chat log that holds what it was made with."""

    messages: tuple[Message, ...] = ()

    def history(self, conversation: str, *, limit: int = 50) -> tuple[Message, ...]:
        """See `assistant.ChatLog`."""
        return self.messages[-limit:]


class PluginContract:
    """What every plugin must keep. Subclass it, set `plugin`; override `services` where the fakes are not enough.

    `models` names the models that the plugin borrows: for each, two versions that the kit swaps between two requests.
    """

    plugin: ClassVar[type[Plugin[Any]]]
    models: ClassVar[Mapping[str, tuple[Any, Any]]] = {}

    def services(self) -> dict[str, Any]:
        """What the constructor may ask for, by name."""
        models = FakeModels()
        models.models.update({name: versions[0] for name, versions in self.models.items()})
        return {
            "config": self.plugin.config_type(),
            "knowledge": FakeKnowledge(),
            "models": models,
            "log": FakeLog(),
        }

    def build(self, services: Mapping[str, Any] | None = None) -> Plugin[Any]:
        """The plugin with exactly what its constructor names, opened."""
        given = services if services is not None else self.services()
        plugin = self.plugin(**{name: given[name] for name in inspect.signature(self.plugin).parameters})
        plugin.open()
        return plugin

    def run(self, plugin: Plugin[Any], text: str, **more: Any) -> list[Event]:
        """The events of one answer, each as it comes back from its log form."""
        events: list[Event] = []
        drain_into(plugin.handle(make_request(text, **more), plugin.options_type()), events.append)
        return events

    def texts(self) -> tuple[str, ...]:
        """What the kit asks: the plugin's own examples, or one plain text."""
        return self.plugin.examples or ("Hello",)

    def test_keeps_the_form(self) -> None:
        """Name, summary, examples, options: as `check` wants them, and every option has a default."""
        check(self.plugin)
        self.plugin.options_type()
        assert len(self.plugin.summary) <= 120, "the summary is one short sentence"

    def test_asks_for_services_that_exist(self) -> None:
        """Every constructor parameter is a name the host knows."""
        unknown = set(inspect.signature(self.plugin).parameters) - set(SERVICES)
        assert not unknown, f"the host has no service {', '.join(sorted(unknown))}; it has {', '.join(SERVICES)}"

    def test_constructor_is_light(self) -> None:
        """Heavy work belongs in `open`: the constructor runs while the program starts."""
        given = self.services()
        started = time.thread_time()
        self.plugin(**{name: given[name] for name in inspect.signature(self.plugin).parameters})
        assert time.thread_time() - started < 0.2

    def test_answers_its_examples(self) -> None:
        """Every example gets at least one event, all of them valid, none a failure."""
        plugin = self.build()
        for text in self.texts():
            events = self.run(plugin, text)
            assert events, f"no event for {text!r}"
            assert not any(isinstance(event, Failure) for event in events)
        plugin.close()

    def test_survives_hostile_text(self) -> None:
        """Whatever is typed, the plugin answers or raises `UserError` with a sentence."""
        plugin = self.build()
        for text in HOSTILE:
            try:
                self.run(plugin, text)
            except UserError as error:
                assert str(error).strip()
        plugin.close()

    def test_keeps_nothing_of_a_request(self) -> None:
        """Two answers made side by side, event by event, are those made one after the other."""
        first, second = self.texts()[0], self.texts()[-1] + " please"
        plugin = self.build()
        alone = [self.run(plugin, text) for text in (first, second)]
        options = plugin.options_type()
        both = [iter(plugin.handle(make_request(text), options)) for text in (first, second)]
        mixed: list[list[Event]] = [[], []]
        for events in zip_longest(*both):
            for answer, event in zip(mixed, events, strict=True):
                if event is not None:
                    answer.append(from_log(to_log(event)))
        assert mixed == alone
        plugin.close()

    def test_stops_when_cancelled(self) -> None:
        """A request that nobody waits for ends within a second."""
        plugin = self.build()
        cancelled = threading.Event()
        cancelled.set()
        started = time.monotonic()
        self.run(plugin, self.texts()[0], cancelled=cancelled)
        assert time.monotonic() - started < 1.0
        plugin.close()

    def test_keeps_its_state_as_json(self) -> None:
        """What the plugin leaves in `request.state` can be stored."""
        plugin = self.build()
        state: dict[str, Any] = {}
        self.run(plugin, self.texts()[0], state=state)
        json.dumps(state, allow_nan=False)
        plugin.close()

    def test_borrows_models_for_one_request(self) -> None:
        """A borrowed model is given back with the answer, and a version that is swapped in is used by the next request."""
        services = self.services()
        models = services["models"]
        plugin = self.build(services)
        for name, versions in self.models.items():
            self.run(plugin, self.texts()[0])
            models.models[name] = versions[1]
            before = models.uses.get(name, 0)
            self.run(plugin, self.texts()[0])
            assert models.uses.get(name, 0) > before, f"the second request did not borrow {name} anew"
        if not self.models:
            self.run(plugin, self.texts()[0])
        if isinstance(models, FakeModels):
            assert models.borrowed == 0, "a model was kept after the answer"
        plugin.close()


class Chat:
    """An assistant of one's own to talk to: real host, log and database, in a folder of the test."""

    def __init__(self, home: Path, plugins: Sequence[type[Plugin[Any]]], settings: Settings) -> None:
        from assistant.app import Assistant

        self.assistant: Assistant = Assistant(home, settings, plugins=plugins)
        self.identity = Identity("tester", Role.ADMIN)
        self.conversation = ""

    def ask(self, text: str, *, plugin: str = "", **options: Any) -> Reply:
        """The finished answer; the next question goes on in the same conversation."""
        incoming = Incoming(
            text=text, identity=self.identity, conversation=self.conversation, plugin=plugin, options=options
        )
        reply = self.assistant.ask(incoming)
        self.conversation = reply.conversation
        return reply


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Callable[..., Chat]]:
    """`chat(MyPlugin)` is an assistant with that plugin alone; it answers everything nobody else is asked for."""
    made: list[Chat] = []

    def make(*plugins: type[Plugin[Any]], settings: Settings | None = None) -> Chat:
        only = settings or Settings(plugins=PluginsSection(fallback=plugins[0].name, disabled=("hello", "support")))
        made.append(Chat(tmp_path / f"home-{len(made)}", plugins, only))
        return made[-1]

    yield make
    for one in made:
        one.assistant.close()
