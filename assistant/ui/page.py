"""The chat page: its components, and the handlers behind them. Every handler asks `authorize` through the assistant."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from html import escape
from typing import Any

import gradio as gr

from assistant.app import UPDATES_PER_SECOND, Assistant
from assistant.chatlog import Entry
from assistant.errors import UserError
from assistant.identity import Identity, authorize
from assistant.messages import Incoming
from assistant.turns import Snapshot
from assistant.ui.render import one_line, render_answer, render_entry, rendered_id
from assistant.ui.views import View, Views

log = logging.getLogger(__name__)

Identify = Callable[[gr.Request], Identity]
POLL_SECONDS = 0.02
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can carry and no file can
EMPTY = (
    "<div class='empty'><h2>How can I help?</h2><p>Ask about an order, a delivery or a return. "
    "Answers name their source; thumbs tell us what was wrong.</p></div>"
)


class Page:
    """One page for all visitors; what belongs to a visitor is read from the log at every event."""

    def __init__(self, assistant: Assistant, identify: Identify) -> None:
        self._assistant = assistant
        self._identify = identify
        self._views = Views()

    def build(self) -> gr.Blocks:
        """The Blocks of the page, its events wired."""
        blocks = gr.Blocks(title="Assistant", analytics_enabled=False, fill_height=True)
        with blocks:
            with gr.Sidebar(label="Conversations", width=280, elem_id="sidebar"):
                new = gr.Button("New conversation", elem_id="new", variant="secondary", size="sm")
                self._list = gr.Radio(
                    [],
                    label="Conversations",
                    show_label=False,
                    container=False,
                    elem_id="conversations",
                    interactive=True,
                )
                with gr.Accordion("This conversation", open=False, elem_id="manage"):
                    title = gr.Textbox(label="Title", max_lines=1, max_length=120, elem_id="title")
                    rename = gr.Button("Rename", size="sm", elem_id="rename")
                    delete = gr.Button("Delete", size="sm", variant="stop", elem_id="delete")
                    sure = gr.Button(
                        "Delete for good?", size="sm", variant="stop", visible=False, elem_id="delete-sure"
                    )
            self._chat = gr.Chatbot(
                show_label=False,
                label="Conversation",
                elem_id="chat",
                scale=1,
                height="100%",
                min_height=240,
                layout="bubble",
                buttons=[],
                sanitize_html=True,
                allow_tags=False,
                latex_delimiters=[],
                group_consecutive_messages=False,
                placeholder=EMPTY,
                feedback_options=("Like", "Dislike"),
            )
            with gr.Row(elem_id="ask-row", equal_height=True):
                self._text = gr.Textbox(
                    show_label=False,
                    label="Message",
                    placeholder="Type a question, or / and the name of a plugin",
                    lines=1,
                    max_lines=8,
                    autofocus=True,
                    container=False,
                    scale=8,
                    elem_id="message",
                    max_length=self._assistant.settings.server.max_text,
                )
                self._send = gr.Button("Send", variant="primary", scale=1, min_width=88, elem_id="send")
                self._stop = gr.Button("Stop", variant="stop", scale=1, min_width=88, elem_id="stop")
            self._here = gr.Markdown(elem_id="here", container=False)
            # Out of sight: page.js clicks these, and writes into the box which action of which answer was clicked.
            wake = gr.Button("wake", elem_id="wake")
            action = gr.Textbox(label="Action", elem_id="action", container=False, show_label=False)
            act = gr.Button("act", elem_id="act")
            shown: list[Any] = [self._list, self._chat, self._text, self._here, title]
            # Values come as the browser sent them: Gradio would refuse a conversation that it did not list in this page
            # session, and it forgets the session when the program is started again. Who may do what is ours to say.
            shared: dict[str, Any] = {
                "show_progress": "hidden",
                "api_visibility": "private",
                "concurrency_limit": None,
                "preprocess": False,
            }
            blocks.load(self._load, None, shown, **shared)
            wake.click(self._wake, self._list, shown, **shared)
            self._list.input(self._wake, self._list, shown, **shared)
            new.click(self._new, None, shown, **shared)
            gr.on(
                [self._text.submit, self._send.click],
                self._ask,
                [self._text, self._list],
                shown,
                trigger_mode="multiple",
                **shared,
            )
            self._stop.click(self._halt, self._list, None, **shared)
            rename.click(self._rename, [self._list, title], shown, **shared)
            delete.click(self._confirm, None, sure, **shared)
            sure.click(self._delete, self._list, [*shown, sure], **shared)
            act.click(self._act, action, shown, **shared)
            self._chat.like(self._rate, None, None, **shared)
        return blocks

    async def _load(self, request: gr.Request) -> AsyncIterator[list[Any]]:
        """A page that was just opened: the conversation its address names, and the answer that is on its way in it."""
        identity = self._identify(request)
        wanted = str(request.query_params.get("c") or "")
        async for update in self._show(request, wanted if self._is_mine(identity, wanted) else ""):
            yield update

    async def _wake(self, given: object, request: gr.Request) -> AsyncIterator[list[Any]]:
        identity, conversation = self._identify(request), _text(given)
        async for update in self._show(request, conversation if self._is_mine(identity, conversation) else ""):
            yield update

    async def _new(self, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for update in self._show(request, ""):
            yield update

    async def _ask(self, said: object, given: object, request: gr.Request) -> AsyncIterator[list[Any]]:
        identity, text, conversation = self._identify(request), _text(said), _text(given)
        if not text.strip():
            yield self._nothing()
            return
        incoming = Incoming(
            text=text,
            identity=identity,
            conversation=conversation,
            locale=self._locale(request),
            key=secrets.token_hex(16),
        )
        begun = await asyncio.to_thread(_shown_to_user, lambda: self._assistant.submit(incoming))
        async for update in self._show(request, begun.conversation, cleared=True):
            yield update

    async def _act(self, clicked: object, request: gr.Request) -> AsyncIterator[list[Any]]:
        """An action that a person clicked: `clicked` is the answer's id and which of its actions it is, counted from 0."""
        identity = self._identify(request)
        message, _, position = _text(clicked).partition(" ")
        number = int(position) if position.isdecimal() and len(position) < 6 else -1
        begun = await asyncio.to_thread(
            _shown_to_user, lambda: self._assistant.act(identity, message, number, locale=self._locale(request))
        )
        async for update in self._show(request, begun.conversation):
            yield update

    def _halt(self, given: object, request: gr.Request) -> None:
        identity, conversation = self._identify(request), _text(given)
        if conversation:
            turn = _shown_to_user(lambda: self._assistant.running(identity, conversation))
            _shown_to_user(lambda: self._assistant.stop(identity, turn))

    async def _rename(self, given: object, title: object, request: gr.Request) -> AsyncIterator[list[Any]]:
        identity, conversation = self._identify(request), _text(given)
        if conversation:
            _shown_to_user(lambda: self._assistant.rename(identity, conversation, _text(title)))
        async for update in self._show(request, conversation):
            yield update

    def _confirm(self) -> Any:
        """Ask before a conversation is deleted."""
        return gr.update(visible=True)

    async def _delete(self, given: object, request: gr.Request) -> AsyncIterator[list[Any]]:
        identity, conversation = self._identify(request), _text(given)
        if conversation:
            _shown_to_user(lambda: self._assistant.delete(identity, conversation))
        async for update in self._show(request, ""):
            yield [*update, gr.update(visible=False)]

    def _rate(self, request: gr.Request, event: gr.LikeData) -> None:
        """A thumb on the answer that the clicked message names; its position is not trusted, lists may have changed since."""
        message = rendered_id(event.value[0] if isinstance(event.value, list) and event.value else event.value)
        if not message:
            raise gr.Error("That answer is not in the log any more. Reload the page.", print_exception=False)
        value = {True: 1, "Like": 1, False: -1, "Dislike": -1}.get(event.liked, 0)
        _shown_to_user(lambda: self._assistant.rate(self._identify(request), message, value))

    async def _show(self, request: gr.Request, conversation: str, *, cleared: bool = False) -> AsyncIterator[list[Any]]:
        """The whole page for `conversation` ("" is an empty one), then the running answer as it grows."""
        view = await self._views.begin(str(request.session_hash))
        try:
            async for update in self._updates(self._identify(request), conversation, view, cleared=cleared):
                yield update
            yield self._nothing()  # Gradio sends the last update once more when an event ends
        finally:
            view.leave()

    async def _updates(
        self, identity: Identity, conversation: str, view: View, *, cleared: bool
    ) -> AsyncIterator[list[Any]]:
        mine = self._assistant.conversations(identity)
        entries = self._assistant.entries(identity, conversation) if conversation else ()
        messages = [_message(entry) for entry in entries]
        turn = next((entry.id for entry in entries if entry.state in ("pending", "streaming")), "")
        title = next((item.title for item in mine if item.id == conversation), "")
        thumbs = [{1: "Like", -1: "Dislike"}.get(entry.feedback) for entry in entries if entry.role != "user"]
        choices = [(one_line(item.title or "New conversation"), item.id) for item in mine]
        yield [
            gr.update(choices=choices, value=conversation or None),
            gr.update(value=messages, feedback_value=thumbs),
            gr.update(value="") if cleared else gr.skip(),
            _here(conversation, turn),
            title,
        ]
        if not turn:
            return
        async for snapshot in self._follow(identity, turn, view):
            content = render_answer(snapshot.events, snapshot.state, snapshot.route, message=turn)
            messages[-1] = {**messages[-1], "content": content}
            update = self._nothing()
            update[1] = messages
            if snapshot.over:
                update[3] = _here(conversation, "")
            yield update

    async def _follow(self, identity: Identity, turn: str, view: View) -> AsyncIterator[Snapshot]:
        """Snapshots of a running answer until it or the view is over, at most `UPDATES_PER_SECOND`; costs no thread."""
        seen = -1
        while not view.over:
            version, snapshot = self._assistant.look(identity, turn)
            if snapshot.over:
                yield await asyncio.to_thread(self._logged, identity, snapshot)
                return
            if version != seen:
                seen = version
                shown = time.monotonic()
                yield snapshot
                await asyncio.sleep(max(0.0, 1 / UPDATES_PER_SECOND - (time.monotonic() - shown)))
            else:
                await asyncio.sleep(POLL_SECONDS)

    def _logged(self, identity: Identity, over: Snapshot) -> Snapshot:
        """The ended answer as the log has it, with addresses for its files; once it is shown, the next may be asked."""
        for _ in self._assistant.follow(identity, over.turn):
            pass  # its last snapshot comes when the end is on the disk
        logged = self._assistant.look(identity, over.turn)[1]
        return logged if logged.over else over

    def _locale(self, request: gr.Request) -> str:
        """The language of the settings, or with "auto" the browser's first."""
        language = self._assistant.settings.language
        if language != "auto":
            return language
        return str(request.headers.get("accept-language") or "en").split(",")[0].split(";")[0].strip() or "en"

    def _is_mine(self, identity: Identity, conversation: str) -> bool:
        """Whether the page may open that conversation; another's looks like one that is not there."""
        if not conversation:
            return False
        try:
            authorize(identity, "conversation.read", self._assistant.log.conversation(conversation).owner)
        except UserError:
            return False
        return True

    def _nothing(self) -> list[Any]:
        return [gr.skip()] * 5


def _message(entry: Entry) -> dict[str, Any]:
    role = "user" if entry.role == "user" else "assistant"
    return {"role": role, "content": render_entry(entry), "metadata": {"id": entry.id}}


def _here(conversation: str, turn: str) -> str:
    """What the page's script and style go by: which conversation is shown, and which answer is on its way in it.

    Send and Stop take turns by it: Gradio loses one of two changes of `visible` that come close together.
    """
    return f'<span class="here" title="{escape(conversation)}"></span><span class="following" title="{escape(turn)}"></span>'


def _text(value: object) -> str:
    """What a text box or the list holds, as the browser sent it; nothing chosen is ""."""
    if value is None:
        return ""
    if not isinstance(value, str) or _LONE_SURROGATE.search(value):
        raise gr.Error("This page sent something else than text. Reload it.", print_exception=False)
    return value


def _shown_to_user(work: Callable[[], Any]) -> Any:
    """What `work` gives; a `UserError` becomes the toast that says it."""
    try:
        return work()
    except UserError as error:
        raise gr.Error(str(error), print_exception=False, title="That did not work") from None
