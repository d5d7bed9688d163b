"""What the page looks like when it is empty, busy, broken, full, narrow, dark, or fed with hostile texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from playwright.sync_api import BrowserContext, Dialog, expect

from tests.browser.carriers import EXFILTRATION, XSS
from tests.browser.conftest import Open, Screen, Site, Watch
from tests.server.visitor import Visitor

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}


def test_an_empty_page_says_what_to_do(screen: Screen) -> None:
    """Nothing in the list, a sentence in the middle, the cursor in the message box."""
    expect(screen.page).to_have_title("Assistant")
    expect(screen.page.locator("#chat .empty")).to_contain_text("How can I help?")
    expect(screen.list).to_have_count(0)
    expect(screen.box).to_be_focused()
    expect(screen.stop).to_be_hidden()


def test_a_failure_keeps_what_came(screen: Screen) -> None:
    """The text so far, a sentence and a reference that finds the traceback in the log; the traceback itself is not shown."""
    screen.ask("/crash").answered()
    expect(screen.last).to_contain_text("The first half of the answer.")
    failure = screen.last.locator(".failure")
    expect(failure).to_contain_text("Something went wrong with this answer.")
    reference = failure.locator("code").inner_text()
    assert re.fullmatch("[0-9a-f]{8}", reference)
    assert "the-secret-of-the-traceback" not in screen.page.content()
    assert screen.site.served is not None
    assert f"reference {reference}" in screen.site.served.log
    screen.ask("/hello").answered(2)


def test_a_long_answer_scrolls_inside_the_chat(screen: Screen) -> None:
    """However long it is, the message box stays in sight and the window does not scroll."""
    screen.ask("/count 4000 0").answered()
    expect(screen.last).to_contain_text("n4000 counted.")
    expect(screen.box).to_be_in_viewport(ratio=1)
    expect(screen.send).to_be_in_viewport(ratio=1)
    assert screen.page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    expect(screen.last.locator(".trace summary")).to_be_in_viewport()


def test_every_kind_of_event_is_shown(screen: Screen) -> None:
    """One answer with all of them: each has its form on the screen."""
    screen.ask("/everything").answered()
    answer = screen.last
    expect(answer.locator("h2")).to_have_text("A heading")
    expect(answer.locator("strong").first).to_have_text("bold")
    expect(answer.locator("a[href='https://shop.example/help']")).to_have_attribute("rel", re.compile("noopener"))
    expect(answer.locator("mark.entity")).to_have_text(["Anna Berg person", "Oslo place", "4711 order"])
    expect(answer.locator("ol.labels li")).to_contain_text(["83%", "12%", "5%"])
    expect(answer.locator("ol.labels meter").first).to_have_js_property("value", 0.83)
    expect(answer.locator("caption")).to_have_text("Your orders")
    expect(answer.locator("td")).to_have_text(["4711", "on its way", "59.9", "4712", "delivered", ""])
    expect(answer.locator("button.choice")).to_have_text(["Order 4711", "Another"])
    expect(answer.locator("button.action")).to_have_text(["Refund the order"])
    expect(answer.locator(".job code")).to_have_text("0123456789abcdef0123456789abcdef")
    expect(answer.locator(".file a")).to_have_text("invoice 4711.txt")
    expect(answer.locator(".handoff")).to_contain_text("The parcel is late by more than a week.")
    expect(answer.locator(".sources summary")).to_have_text(
        [re.compile("My parcel is late"), re.compile("Delivery > Delays")]
    )
    expect(answer.locator(".trace summary")).to_have_text("Answered by everything")


def test_progress_is_shown_while_it_lasts(screen: Screen) -> None:
    """A bar with its text, in the place of the dots; gone when the answer is over."""
    screen.ask("/everything slow")
    bar = screen.last.locator("progress")
    expect(bar).to_have_js_property("value", 0.4)
    expect(screen.last).to_contain_text("Reading the order")
    screen.stop.click()
    screen.answered()
    expect(bar).to_have_count(0)


def test_a_second_question_waits(screen: Screen) -> None:
    """A question in the middle of an answer is refused in a sentence, and is still in the box."""
    screen.ask("/count 30 0.1")
    expect(screen.last).to_contain_text("n2 ")
    screen.ask("/hello")
    expect(screen.page.get_by_text("is still being answered")).to_be_visible()
    expect(screen.box).to_have_value("/hello")
    screen.answered()
    expect(screen.last).to_contain_text("counted.")


def test_an_unknown_plugin_is_named(screen: Screen) -> None:
    """A wrong command says which there are; those of others are not among them."""
    screen.ask("/nothing here").answered()
    expect(screen.last.locator(".failure")).to_contain_text("There is no plugin /nothing here. These are: ")
    expect(screen.last.locator(".failure")).not_to_contain_text("/vault")


@pytest.mark.parametrize("wanted", ["0" * 32, "nothing", "%22%3E%3Cscript%3Ealert(1)%3C/script%3E", "a" * 3000])
def test_an_unknown_conversation_is_an_empty_page(screen: Screen, wanted: str) -> None:
    """An address of yesterday, of somebody else, or of nobody."""
    screen.open(f"/?c={wanted}")
    expect(screen.page.locator("#chat .empty")).to_be_visible()
    expect(screen.page).to_have_url(f"{screen.site.address}/")
    screen.ask("/hello").answered()


@pytest.fixture(scope="module")
def attacker() -> Iterator[tuple[str, list[str]]]:
    """A server elsewhere (on loopback): its address, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


HARMLESS = """() => [...document.querySelectorAll('#chat .answer, #chat .said, #conversations label')].flatMap(part =>
  [...part.querySelectorAll('*')].flatMap(element => [
    ...(element.matches('script,img,svg,iframe,object,embed,style,link,base,meta,form,input:not([type=radio]),video,audio,math,textarea')
        ? [element.outerHTML] : []),
    ...[...element.attributes].filter(({name, value}) => name.startsWith('on') || name === 'style' || name === 'src'
        || (name === 'href' && !/^(https?:|mailto:|\\/files\\/)/.test(value))).map(({name, value}) => `${name}=${value}`)]))"""


def test_hostile_texts_are_texts(visitor: Open, site: Site, watch: Watch, attacker: tuple[str, list[str]]) -> None:
    """SEC-09: in messages, titles and every text of every event: no script runs, nothing is asked of anybody."""
    address, asked = attacker
    context = visitor()
    page = context.new_page()
    page.add_init_script("window.hits = 0; window.hit = () => { window.hits++ }")

    def refuse(dialog: Dialog) -> None:
        watch.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    screen = Screen(page, site).open()
    carriers = [carrier.format(a=address) for carrier in (*XSS, *EXFILTRATION)]
    with Visitor(site.address) as quick:  # the same visitor, without waiting for the screen
        quick.client.cookies.set("assistant_session", _cookie(context))
        conversation = ""
        for carrier in carriers[1:]:
            conversation, outcome = quick.ask(f"/hostile {carrier}", conversation)
            assert outcome.success
    screen.open(f"/?c={conversation}").answered(len(carriers) - 1)
    screen.ask(f"/hostile {carriers[0]}").answered(len(carriers))
    for summary in page.locator("#chat .sources summary").all()[:10]:
        summary.click()
    for element in page.locator("#chat mark, #chat button.choice").all()[:20]:
        element.hover()
    assert page.evaluate(HARMLESS) == []
    assert page.evaluate("window.hits") == 0
    assert asked == []
    assert screen.answers.count() == len(carriers)
    expect(page.locator("#chat .said").last).to_have_text(f"/hostile {carriers[0]}")
    assert "onerror=hit()" in page.locator("#chat").inner_text(), "the texts are not shown at all: what was tested?"


def _cookie(context: BrowserContext) -> str:
    return next(cookie["value"] for cookie in context.cookies() if cookie["name"] == "assistant_session")


def test_the_test_of_hostile_texts_can_fail(visitor: Open, site: Site) -> None:
    """What the sanitizer takes out is found where it is put in."""
    page = visitor().new_page()
    page.add_init_script("window.hits = 0; window.hit = () => { window.hits++ }")
    screen = Screen(page, site).open()
    screen.ask("/hello").answered()
    html = '<img src="data:,x" onerror="hit()"><a href="javascript:hit()">x</a>'
    page.evaluate("html => { document.querySelector('#chat .answer').innerHTML += html }", html)
    page.wait_for_function("window.hits === 1")
    assert len(page.evaluate(HARMLESS)) == 4, "an image, its source, its handler, the address of the link"


def test_a_phone_shows_it_all(visitor: Open, site: Site) -> None:
    """390 pixels: no sideways scrolling, the message box in reach, the list folded away until it is wanted."""
    screen = Screen(visitor(viewport=PHONE, has_touch=True).new_page(), site).open()
    expect(screen.page.locator("#sidebar.open")).to_have_count(0)
    screen.ask("/everything").answered()
    assert screen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for locator in (screen.box, screen.send):
        expect(locator).to_be_in_viewport(ratio=1)
    screen.box.click()
    for overflow in ("#chat .answer", "#chat .said"):
        assert screen.page.locator(overflow).last.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    screen.page.locator("#sidebar .toggle-button").click()
    screen.new()
    expect(screen.page.locator("#sidebar.open")).to_have_count(0)
    screen.ask("/hello").answered()
    screen.page.locator("#sidebar .toggle-button").click()
    screen.list.nth(1).click()
    expect(screen.page.locator("#sidebar.open")).to_have_count(0)
    expect(screen.page.locator("#chat .said")).to_have_text(["/everything"])


CONTRAST = """(element) => {
  const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
  const chain = []; for (let e = element; e; e = e.parentElement) chain.push(e);
  let back = [255, 255, 255], opacity = 1;
  for (const e of chain.reverse()) { const style = getComputedStyle(e);
    back = over(channels(style.backgroundColor), back); opacity *= Number(style.opacity); }
  const style = getComputedStyle(element), front = channels(style.color);
  const seen = over([...front.slice(0, 3), (front[3] ?? 1) * opacity], back);
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const [one, two] = [light(seen), light(back)];
  return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
}"""
TEXTS = (
    "#chat .said", "#chat .answer p", "#chat .answer a", "#chat .sources small", "#chat .sources summary", "#chat .model small",
    "#chat .trace summary", "#chat mark.entity small", "#chat td", "#chat button.choice", "#chat .failure", "#chat .failure small",
    "#chat .note", "#send", "#new", "#conversations label.selected span",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visitor: Open, site: Site, scheme: str) -> None:
    """WCAG AA in both modes: 4.5 to 1 for every kind of text, the small grey ones first of all."""
    screen = Screen(visitor(color_scheme=scheme).new_page(), site).open()
    screen.ask("/everything").answered()
    screen.ask("/crash").answered(2)
    screen.ask("/count 100 0.1")
    expect(screen.last).to_contain_text("n1")
    screen.stop.click()
    screen.answered(3)
    assert screen.page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    screen.page.mouse.move(600, 5)
    screen.page.wait_for_timeout(400)  # colours glide from hover to rest
    measured = {text: screen.page.locator(text).first.evaluate(CONTRAST) for text in TEXTS}
    assert {text: round(ratio, 1) for text, ratio in measured.items() if ratio < 4.5} == {}


def test_it_is_named_for_those_who_listen(screen: Screen) -> None:
    """A screen reader hears who says what, and a name for each control; not mark-up."""
    screen.ask("/hello").answered()
    expect(screen.page.locator("#chat [data-testid=bot]")).to_have_attribute(
        "aria-label", re.compile("^Assistant: Hello!")
    )
    expect(screen.page.locator("#chat [data-testid=user]")).to_have_attribute("aria-label", "You: /hello")
    for name in ("Send", "New conversation", "Like", "Dislike", "Toggle Sidebar"):
        expect(screen.page.get_by_role("button", name=name, exact=True)).to_have_count(1)
    expect(screen.page.get_by_role("textbox", name="Message")).to_have_count(1)
    expect(screen.page.get_by_role("radio", name="/hello")).to_be_checked()
