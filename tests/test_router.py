"""Who answers: explicit choice, then a command, then who holds the floor, then a guess, then the fallback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from assistant import Event, Identity, Options, Plugin, Request, Role, Route, Text, UserError
from assistant.router import MIN_SCORE, Router
from assistant.testing import FakeModels, HashEmbedder

CUSTOMER, AGENT, ADMIN = (Identity("v", role) for role in Role)
EMBEDDER = "all-minilm-l6-v2"


class Base(Plugin[Options]):
    summary = "Answers."

    def handle(self, request: Request, options: Options) -> Iterable[Event]:
        yield Text(self.name)


class Weather(Base):
    name = "weather"
    examples = ("will it rain tomorrow", "how warm is it outside")


class Music(Base):
    name = "music"
    examples = ("play some jazz", "stop the song")


class Secret(Base):
    name = "secret"
    role = Role.ADMIN
    examples = ("train the tagger again",)


class Shy(Base):
    name = "shy"
    guessable = False
    examples = ("never choose me unasked",)


class Fallback(Base):
    name = "fallback_plugin"


PLUGINS = (Weather, Music, Secret, Shy, Fallback)


def make(models: Mapping[str, Any] | None = None, fallback: str = "fallback_plugin") -> tuple[Router, FakeModels]:
    fake = FakeModels({EMBEDDER: HashEmbedder()} if models is None else dict(models))
    return Router({kind.name: kind() for kind in PLUGINS}, fallback, fake, EMBEDDER), fake


def route(text: str, identity: Identity = ADMIN, **more: Any) -> tuple[Route, str]:
    return make()[0].route(text, identity, **more)


# The order of the rules


def test_an_explicit_choice_wins_over_everything() -> None:
    found = route("/music will it rain tomorrow", explicit="secret", floor="weather")
    assert found == (Route("secret", "explicit"), "/music will it rain tomorrow")


def test_a_command_wins_over_the_floor_and_is_taken_off_the_text() -> None:
    assert route("/music  will it rain", floor="weather") == (Route("music", "command"), "will it rain")


def test_a_command_alone_is_one() -> None:
    assert route("/music") == (Route("music", "command"), "")


def test_the_floor_wins_over_a_guess() -> None:
    assert route("will it rain tomorrow", floor="music") == (Route("music", "floor"), "will it rain tomorrow")


def test_a_guess_wins_over_the_fallback() -> None:
    found, text = route("will it rain tomorrow")
    assert (found.plugin, found.reason, text) == ("weather", "guess", "will it rain tomorrow")
    assert MIN_SCORE <= found.score <= 1


def test_a_message_like_no_example_goes_to_the_fallback() -> None:
    found, _ = route("zebra quagga okapi")
    assert (found.plugin, found.reason) == ("fallback_plugin", "fallback")
    assert 1 - MIN_SCORE < found.score <= 1


@pytest.mark.parametrize("text", ["/usr/bin is broken", "/Music play", "a /music b", "/", "/ music", "//music"])
def test_what_only_looks_like_a_command_is_none(text: str) -> None:
    found, rest = route(text)
    assert found.reason in ("guess", "fallback")
    assert rest == text


def test_a_floor_that_nobody_holds_any_more_is_passed_over() -> None:
    assert route("zebra quagga okapi", floor="uninstalled")[0].reason == "fallback"


# Roles


@pytest.mark.parametrize("identity", [CUSTOMER, AGENT], ids=["customer", "agent"])
@pytest.mark.parametrize("way", ["explicit", "command"])
def test_a_plugin_above_ones_role_is_as_absent_as_one_that_is_not_there(way: str, identity: Identity) -> None:
    """SEC-10: text cannot reach what its writer may not call."""
    for name in ("secret", "nothing"):
        expected = f"There is no plugin /{name} here. These are: /weather, /music, /shy, /fallback_plugin."
        with pytest.raises(UserError) as raised:
            route("x", identity, explicit=name) if way == "explicit" else route(f"/{name} x", identity)
        assert str(raised.value) == expected


def test_an_administrator_is_told_of_all_of_them() -> None:
    with pytest.raises(UserError, match=r"no plugin /wether here\. These are: /weather, /music, /secret, /shy, "):
        route("/wether")


def test_a_floor_above_ones_role_is_passed_over() -> None:
    assert route("train the tagger again", CUSTOMER, floor="secret")[0].plugin != "secret"


def test_a_guess_never_goes_above_ones_role() -> None:
    found, _ = route("train the tagger again")
    assert (found.plugin, found.reason) == ("secret", "guess")
    assert route("train the tagger again", CUSTOMER)[0].reason == "fallback"


def test_a_plugin_that_is_not_guessable_is_never_guessed() -> None:
    assert route("never choose me unasked")[0].plugin != "shy"
    assert route("/shy")[0].plugin == "shy"


def test_a_fallback_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"There is no plugin /gone here\."):
        make(fallback="gone")[0].route("zebra quagga okapi", ADMIN)


# The model behind the guess


def test_without_a_model_nothing_is_guessed() -> None:
    router, _ = make({})
    assert router.route("will it rain tomorrow", ADMIN)[0] == Route("fallback_plugin", "fallback")


def test_the_model_is_borrowed_for_each_message_and_given_back() -> None:
    router, models = make()
    for _ in range(3):
        router.route("will it rain tomorrow", ADMIN)
    assert (models.uses[EMBEDDER], models.borrowed) == (3, 0)


def test_no_model_is_asked_where_a_rule_decides() -> None:
    router, models = make()
    router.route("/music", ADMIN)
    router.route("x", ADMIN, explicit="music")
    router.route("x", ADMIN, floor="music")
    assert models.uses == {}


class Counting(HashEmbedder):
    """Notes which texts it was given."""

    def __init__(self, salt: str = "") -> None:
        super().__init__(salt=salt)
        self.seen: list[str] = []

    def embed_queries(self, texts: Any) -> Any:
        self.seen += texts
        return super().embed_queries(texts)


def test_the_examples_are_read_once_for_each_version_of_the_model() -> None:
    first, second = Counting(), Counting("another")
    router, models = make({EMBEDDER: first})
    for _ in range(2):
        router.route("will it rain tomorrow", ADMIN)
    assert first.seen.count("play some jazz") == 1
    models.models[EMBEDDER] = second
    assert router.route("will it rain tomorrow", ADMIN)[0].plugin == "weather"
    assert second.seen.count("play some jazz") == 1


def test_without_examples_there_is_nothing_to_guess() -> None:
    models = FakeModels()
    router = Router({"fallback_plugin": Fallback()}, "fallback_plugin", models, EMBEDDER)
    assert router.route("will it rain", ADMIN)[0] == Route("fallback_plugin", "fallback")
    assert models.uses == {}
