"""Which showing of a conversation a page sees: one at a time, so that words of one never come into another.

A page follows an answer by an event of Gradio's that goes on as long as the answer does. When the page turns to another
conversation, that event must send nothing more, and must have sent its last before the next one begins.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

MAX_PAGES = 20_000
PATIENCE_SECONDS = 2.0


class View:
    """One showing; `over` says that the page has turned to another one."""

    def __init__(self) -> None:
        self.over = False
        self._left = asyncio.Event()

    def leave(self) -> None:
        """Nothing more will be sent; the next one may begin."""
        self._left.set()

    async def ended(self) -> None:
        """Ask it to end, and return when it has, or after `PATIENCE_SECONDS`."""
        self.over = True
        waiting = asyncio.ensure_future(self._left.wait())
        await asyncio.wait({waiting}, timeout=PATIENCE_SECONDS)
        waiting.cancel()


class Views:
    """The newest view of each page session."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, View] = OrderedDict()

    async def begin(self, page: str) -> View:
        """A new view of the page, when the one before has ended."""
        before = self._newest.pop(page, None)
        made = self._newest[page] = View()
        if len(self._newest) > MAX_PAGES:
            self._newest.popitem(last=False)
        if before is not None:
            await before.ended()
        return made
