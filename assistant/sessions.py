"""Who a browser is: a signed cookie, the one-time token that makes it the administrator's, and whose a page session is."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

from assistant.errors import Forbidden
from assistant.identity import Identity, Role, new_id

COOKIE = "assistant_session"
LIFETIME_SECONDS = 90 * 24 * 3600
KEY_FILE = "session.key"


class Sessions:
    """Signs and reads the cookie. The key lives in the state folder, so cookies outlast a restart."""

    MAX_PAGES = 20_000

    def __init__(self, home: Path) -> None:
        self._serializer = URLSafeTimedSerializer(_key(home), salt="assistant.session")
        self._token = secrets.token_urlsafe(24)
        self._token_digest: bytes | None = hashlib.sha256(self._token.encode()).digest()
        self._lock = threading.Lock()
        self._pages: OrderedDict[str, str] = OrderedDict()

    @property
    def token(self) -> str:
        """The one-time token to print at the start."""
        return self._token

    def visitor(self) -> Identity:
        """A customer nobody has seen before."""
        return Identity(f"v-{new_id()}", Role.CUSTOMER)

    def sign(self, identity: Identity) -> str:
        """The cookie's value for `identity`."""
        return self._serializer.dumps([identity.id, int(identity.role)])

    def read(self, cookie: str | None) -> Identity | None:
        """Who the cookie says; None where there is none, or it is forged, changed or too old."""
        if not cookie:
            return None
        try:
            identity, role = self._serializer.loads(cookie, max_age=LIFETIME_SECONDS)
            return Identity(str(identity), Role(role))
        except (BadSignature, ValueError, TypeError):
            return None

    def redeem(self, token: str, identity: Identity | None) -> Identity:
        """The administrator, keeping what the browser owned as a visitor; a token works once.

        Raises `Forbidden` for a token that is wrong or was used.
        """
        given = hashlib.sha256(token.encode()).digest()
        with self._lock:
            good = self._token_digest is not None and hmac.compare_digest(given, self._token_digest)
            if good:
                self._token_digest = None
        if not good:
            raise Forbidden(
                "This address was used before, or is not from this start of the program. Start it again for a new one."
            )
        return Identity(identity.id if identity else f"a-{new_id()}", Role.ADMIN)

    def bind_page(self, page: str, identity: Identity) -> bool:
        """Whether the page session (Gradio's `session_hash`) is this caller's; whoever uses it first owns it."""
        with self._lock:
            owner = self._pages.setdefault(page, identity.id)
            self._pages.move_to_end(page)
            if len(self._pages) > self.MAX_PAGES:
                self._pages.popitem(last=False)
        return owner == identity.id


def _key(home: Path) -> str:
    """The signing key, made once with rights for the owner alone; it appears under its name only when it is whole."""
    path = home / KEY_FILE
    if not path.exists():
        made = home / f"{KEY_FILE}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            os.link(made, path)
        made.unlink()
    return path.read_text(encoding="ascii")
