"""Who a browser is: the signed cookie, the one-time token, and whose a page session is."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from assistant.errors import Forbidden
from assistant.identity import Identity, Role
from assistant.sessions import LIFETIME_SECONDS, Sessions

ALICE = Identity("v-alice")


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    """Sessions with a key of their own."""
    return Sessions(tmp_path)


def test_a_signed_cookie_says_who_it_is(sessions: Sessions) -> None:
    """What was signed is read back, role included."""
    for role in Role:
        identity = Identity("v-1", role)
        assert sessions.read(sessions.sign(identity)) == identity


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cookie: "",
        lambda cookie: "x",
        lambda cookie: cookie + "x",
        lambda cookie: cookie[:-1],
        lambda cookie: cookie.partition(".")[0],
        lambda cookie: "W10." + cookie.partition(".")[2],
        lambda cookie: "é" * 50,
        lambda cookie: cookie * 100,
    ],
    ids=["empty", "short", "longer", "cut", "unsigned", "another value", "no ascii", "repeated"],
)
def test_a_spoiled_cookie_is_nobody(sessions: Sessions, spoil: Callable[[str], str]) -> None:
    """A cookie that we did not sign as it is does not count, and is no error."""
    assert sessions.read(spoil(sessions.sign(ALICE))) is None


def test_a_cookie_with_another_role_is_nobody(sessions: Sessions) -> None:
    """The role stands under the signature."""
    value, _, rest = sessions.sign(ALICE).partition(".")
    admin = base64.urlsafe_b64encode(json.dumps([ALICE.id, int(Role.ADMIN)]).encode()).decode().rstrip("=")
    assert admin != value
    assert sessions.read(f"{admin}.{rest}") is None


def test_a_cookie_of_another_installation_is_nobody(sessions: Sessions, tmp_path: Path) -> None:
    """Each state folder has its own key."""
    (tmp_path / "other").mkdir()
    assert sessions.read(Sessions(tmp_path / "other").sign(ALICE)) is None


def test_a_cookie_expires(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its lifetime a cookie is nobody's."""
    cookie = sessions.sign(ALICE)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS - 10)
    assert sessions.read(cookie) == ALICE
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME_SECONDS + 10)
    assert sessions.read(cookie) is None


def test_cookies_outlast_a_restart(sessions: Sessions, tmp_path: Path) -> None:
    """The key lies in the state folder, for its owner alone."""
    cookie = sessions.sign(ALICE)
    assert Sessions(tmp_path).read(cookie) == ALICE
    assert (tmp_path / "session.key").stat().st_mode & 0o077 == 0


def test_a_token_works_once(sessions: Sessions) -> None:
    """The administrator keeps what the browser owned as a visitor; the second one is told why not."""
    assert sessions.redeem(sessions.token, ALICE) == Identity(ALICE.id, Role.ADMIN)
    with pytest.raises(Forbidden, match=r"was used before.*Start it again for a new one"):
        sessions.redeem(sessions.token, Identity("v-bob"))


@pytest.mark.parametrize("token", ["", "x", "é", "0" * 32])
def test_a_wrong_token_does_not_use_it_up(sessions: Sessions, token: str) -> None:
    """Guessing costs the right holder nothing."""
    with pytest.raises(Forbidden):
        sessions.redeem(token, ALICE)
    assert sessions.redeem(sessions.token, ALICE).role is Role.ADMIN


def test_a_token_is_new_at_every_start(sessions: Sessions, tmp_path: Path) -> None:
    """An address from yesterday's terminal opens nothing, and a token has 192 random bits."""
    assert Sessions(tmp_path).token != sessions.token
    assert len(sessions.token) >= 32


def test_a_page_session_belongs_to_whoever_used_it_first(sessions: Sessions) -> None:
    """Gradio keeps what a page shows under a number of the page's choice; nobody else may use it."""
    assert sessions.bind_page("p1", ALICE)
    assert sessions.bind_page("p1", Identity(ALICE.id, Role.ADMIN))
    assert not sessions.bind_page("p1", Identity("v-bob"))


def test_page_sessions_do_not_grow_for_ever(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest unused ones are forgotten."""
    monkeypatch.setattr(Sessions, "MAX_PAGES", 10)
    for number in range(50):
        sessions.bind_page(f"p{number}", ALICE)
    assert len(sessions._pages) == 10
