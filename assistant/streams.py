"""Server-sent events that wake pages: an answer started or finished in a conversation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from assistant.app import Assistant
from assistant.identity import Identity

KEEPALIVE_SECONDS = 15.0
RETRY_MILLISECONDS = 2000


class Streams:
    """The open streams of one server; they end when the server does, otherwise it would wait for them."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._open: set[asyncio.Queue[tuple[str, str] | None]] = set()

    async def follow(self, identity: Identity, conversation: str) -> AsyncIterator[str]:
        """What happens in the conversation from now on, and first the answer that is on its way in it.

        Ask `authorize` first: what is raised once a response has begun cannot be shown.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()

        def tell(what: str, turn: str) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (what, turn))

        # Nothing is awaited between subscribing and `try`: a client that leaves in between would stay subscribed.
        stop = self._assistant.listen(identity, conversation, tell)
        self._open.add(queue)
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n"
            running = await asyncio.to_thread(self._assistant.running, identity, conversation)
            if running:
                yield _event("started", running)
            while True:
                try:
                    news = await asyncio.wait_for(queue.get(), KEEPALIVE_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if news is None:
                    return
                yield _event(*news)
        finally:
            self._open.discard(queue)
            stop()

    def close(self) -> None:
        """End every stream; called on the server's event loop."""
        for queue in self._open:
            queue.put_nowait(None)


def _event(what: str, turn: str) -> str:
    return f"event: {what}\ndata: {json.dumps({'turn': turn})}\n\n"
