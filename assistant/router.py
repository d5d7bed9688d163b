"""Chooses the plugin that answers: explicit choice > /command > who holds the floor > learned guess > fallback."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assistant.errors import ModelMissing, UserError
from assistant.identity import Identity, call_action, may
from assistant.messages import Route
from assistant.plugin import Plugin
from assistant.services import Embedder, ModelStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COMMAND = re.compile(r"^/([a-z][a-z_]*)(?:\s+|$)")
NONE_COSINE = 0.55
TEMPERATURE = 0.05
MIN_SCORE = 0.6


class Router:
    """Routes one message; the rule that fired and its score are part of the reply."""

    def __init__(self, plugins: Mapping[str, Plugin[Any]], fallback: str, models: ModelStore, embedder: str) -> None:
        self._plugins = plugins
        self._fallback = fallback
        self._guess = ExampleGuess(plugins, models, embedder)

    def route(self, text: str, identity: Identity, *, explicit: str = "", floor: str = "") -> tuple[Route, str]:
        """The route, and the text for the plugin (without a leading command).

        Raises `UserError` where a plugin is asked for that is not there or not for this caller.
        """
        if explicit:
            return Route(self._named(explicit, identity), "explicit"), text
        if command := _COMMAND.match(text):
            rest = text[command.end() :]
            return Route(self._named(command[1], identity), "command"), rest
        if floor in self._plugins and may(identity, call_action(self._plugins[floor].role)):
            return Route(floor, "floor"), text
        guess = self._guess.best(text, identity)
        if guess is not None and guess[1] >= MIN_SCORE:
            return Route(guess[0], "guess", guess[1]), text
        score = 1.0 - (guess[1] if guess else 0.0)
        return Route(self._named(self._fallback, identity), "fallback", score), text

    def _named(self, name: str, identity: Identity) -> str:
        plugin = self._plugins.get(name)
        if plugin is None or not may(identity, call_action(plugin.role)):
            known = ", ".join(
                f"/{other.name}" for other in self._plugins.values() if may(identity, call_action(other.role))
            )
            raise UserError(f"There is no plugin /{name} here. These are: {known or 'none'}.")
        return name


class ExampleGuess:
    """A guess from the plugins' own examples: softmax over each plugin's nearest example and "none of them".

    P(plugin) is proportional to exp(cosine / TEMPERATURE), and "none of them" counts as a cosine of NONE_COSINE, so a message
    unlike every example goes to the fallback.
    """

    def __init__(self, plugins: Mapping[str, Plugin[Any]], models: ModelStore, embedder: str) -> None:
        self._candidates = [p for p in plugins.values() if p.guessable and p.examples]
        self._models = models
        self._embedder = embedder
        self._lock = threading.Lock()
        self._vectors: tuple[str, NDArray[np.float32]] | None = None

    def best(self, text: str, identity: Identity) -> tuple[str, float] | None:
        """The likeliest plugin that `identity` may call and its probability; None where nothing can be guessed."""
        if not self._candidates:
            return None
        import numpy as np

        try:
            with self._models.use(self._embedder, Embedder) as embedder:  # type: ignore[type-abstract]
                cosines = self._examples(embedder) @ embedder.embed_queries([text])[0]
        except ModelMissing:
            return None  # before the first model is in place there is nothing to guess with
        best: dict[str, float] = {}
        owners = [plugin for plugin in self._candidates for _ in plugin.examples]
        for plugin, cosine in zip(owners, cosines, strict=True):
            if may(identity, call_action(plugin.role)):
                best[plugin.name] = max(best.get(plugin.name, -1.0), float(cosine))
        if not best:
            return None
        powers = np.exp((np.array([NONE_COSINE, *best.values()]) - 1.0) / TEMPERATURE)
        probabilities = powers / powers.sum()
        index = int(probabilities[1:].argmax())
        return list(best)[index], float(probabilities[1 + index])

    def _examples(self, embedder: Embedder) -> NDArray[np.float32]:
        with self._lock:
            if self._vectors is None or self._vectors[0] != embedder.digest:
                texts = [example for plugin in self._candidates for example in plugin.examples]
                self._vectors = (embedder.digest, embedder.embed_queries(texts))
            return self._vectors[1]
