"""What a person does on the page, from the first question to the day after a restart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, expect

from tests.browser.conftest import Open, Screen, Site, Watch

pytestmark = pytest.mark.browser
QUESTION = "how long do I have to send something back?"


def test_a_question_gets_an_answer_with_its_source(screen: Screen) -> None:
    """The demo shop: the answer streams in, its source opens with passage and score, the route is said in a folded line."""
    expect(screen.page.locator("#chat .empty")).to_be_visible()
    screen.ask(QUESTION).answered()
    expect(screen.last).to_contain_text("days")
    source = screen.last.locator(".sources li").first
    passage = source.locator("blockquote")
    expect(passage).to_be_hidden()
    source.locator("summary").click()
    expect(passage).to_be_visible()
    expect(passage).to_contain_text("days")
    expect(source.locator("summary small")).to_have_text(re.compile(r"^\d{1,3}%$"))
    expect(source).to_contain_text("faq.csv")
    why = screen.last.locator(".trace p")
    expect(why).to_be_hidden()
    screen.last.locator(".trace summary").click()
    expect(why).to_have_text(re.compile(r"^Chosen because .+\(rule (guess|fallback), \d+%\)\.$"))


def test_an_answer_streams_and_is_stopped(screen: Screen) -> None:
    """Words come one after the other; Stop takes the place of Send, keeps what came, and gives Send back."""
    screen.ask("/count 500 0.1")
    expect(screen.last).to_contain_text("n3 ")
    expect(screen.last.locator(".waiting")).to_be_visible()
    expect(screen.send).to_be_hidden()
    screen.stop.click()
    screen.answered()
    expect(screen.last).to_contain_text("You stopped this answer.")
    expect(screen.last).to_contain_text("n1 n2 n3")
    expect(screen.stop).to_be_hidden()
    rows = screen.site.rows(
        "SELECT state FROM messages WHERE conversation = ? AND role = 'assistant'", screen.conversation
    )
    assert rows == [("stopped",)]


def test_escape_stops(screen: Screen) -> None:
    """The Escape key is the Stop button."""
    screen.ask("/count 500 0.1")
    expect(screen.last).to_contain_text("n2 ")
    expect(screen.stop).to_be_visible()
    screen.page.keyboard.press("Escape")
    screen.answered()
    expect(screen.last).to_contain_text("You stopped this answer.")


def test_a_thumb_stays_on_the_answer_it_was_given_to(screen: Screen) -> None:
    """The middle one of three: in the database, and on the screen after a reload."""
    for number, text in enumerate(("/hello one", "/hello two", "/hello three"), 1):
        screen.ask(text).answered(number)
    likes = screen.page.locator("#chat").get_by_role("button", name=re.compile("^Liked?$"))
    expect(likes).to_have_count(3)
    with screen.page.expect_response(lambda response: "/queue/join" in response.url):
        likes.nth(1).click()
    answers = screen.site.rows(
        "SELECT id FROM messages WHERE conversation = ? AND role = 'assistant' ORDER BY seq", screen.conversation
    )
    query = "SELECT message, value FROM feedback WHERE message IN (SELECT id FROM messages WHERE conversation = ?)"
    _until(lambda: screen.site.rows(query, screen.conversation) == [(answers[1][0], 1)])
    screen.page.reload()
    screen.ready().answered(3)
    expect(screen.page.locator("#chat").get_by_role("button", name="Liked")).to_have_count(1)
    liked = screen.page.locator("#chat").get_by_role("button", name="Liked").bounding_box()
    above, below = (screen.answers.nth(index).bounding_box() for index in (1, 2))
    assert liked
    assert above
    assert below
    assert above["y"] < liked["y"] < below["y"], "the thumb is shown under another answer"


def _until(reached: object, seconds: float = 10.0) -> None:
    import time

    assert callable(reached)
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def test_a_reload_in_mid_answer_goes_on_with_it(screen: Screen) -> None:
    """The page re-attaches to the answer, once, and sees its end."""
    screen.ask("/count 40 0.1")
    expect(screen.last).to_contain_text("n5 ")
    screen.page.reload()
    screen.ready()
    expect(screen.stop).to_be_visible()
    expect(screen.last).to_contain_text("n10 ")
    screen.answered()
    expect(screen.last).to_contain_text("n39 n40 counted.")
    expect(screen.answers).to_have_count(1)


def test_a_second_window_sees_the_answer_that_is_on_its_way(screen: Screen, site: Site) -> None:
    """Opened before or during the answer, it follows it, to the same end."""
    screen.ask("/hello").answered()
    second = Screen(screen.page.context.new_page(), site).open(f"/?c={screen.conversation}").answered()
    screen.ask("/count 40 0.1")
    expect(second.last).to_contain_text("n3 ")
    expect(second.stop).to_be_visible()
    second.stop.click()
    for window in (screen, second):
        window.answered(2)
        expect(window.last).to_contain_text("You stopped this answer.")


def test_a_window_that_nobody_sees_holds_no_connection(screen: Screen) -> None:
    """Six open streams would stop every window of a browser: a hidden one lets go of its own, and catches up when it is seen."""
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    streams = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('/events?')).length"
    screen.ask("/hello").answered()
    second = Screen(screen.page.context.new_page(), screen.site).open(f"/?c={screen.conversation}").answered()
    screen.page.evaluate(hide, True)
    screen.page.wait_for_function(f"{streams} === 1")  # an entry appears when its stream has ended
    second.ask("/hello again").answered(2)
    expect(screen.answers).to_have_count(1)
    screen.page.evaluate(hide, False)
    screen.answered(2)


def test_a_conversation_is_renamed(screen: Screen) -> None:
    """The list shows the new title, also after a reload."""
    screen.ask("/hello there").answered()
    expect(screen.list).to_have_text(["/hello there"])
    screen.page.locator("#manage button").first.click()
    title = screen.page.locator("#title input, #title textarea")
    expect(title).to_have_value("/hello there")
    title.fill("Greetings <b>from</b> me")
    screen.page.locator("#rename").click()
    expect(screen.list).to_have_text(["Greetings <b>from</b> me"])
    screen.page.reload()
    screen.ready()
    expect(screen.list).to_have_text(["Greetings <b>from</b> me"])


def test_a_conversation_is_deleted_after_a_question(screen: Screen) -> None:
    """Delete asks first; afterwards it is out of the list, and its address shows an empty page."""
    screen.ask("/hello").answered()
    gone = screen.conversation
    screen.page.locator("#manage button").first.click()
    sure = screen.page.locator("#delete-sure")
    expect(sure).to_be_hidden()
    screen.page.locator("#delete").click()
    expect(sure).to_be_visible()
    expect(screen.list).to_have_count(1)
    sure.click()
    expect(screen.page.locator("#chat .empty")).to_be_visible()
    expect(screen.list).to_have_count(0)
    expect(sure).to_be_hidden()
    screen.open(f"/?c={gone}")
    expect(screen.page.locator("#chat .empty")).to_be_visible()


def test_switching_between_conversations(screen: Screen) -> None:
    """Each shows its own messages; the address names the one that is shown, and opens it."""
    screen.ask("/hello first").answered()
    first = screen.conversation
    screen.new().ask("/hello second").answered()
    second = screen.conversation
    assert first != second
    expect(screen.list).to_have_text(["/hello second", "/hello first"])
    expect(screen.page).to_have_url(f"{screen.site.address}/?c={second}")
    screen.list.nth(1).click()
    expect(screen.page.locator("#chat .said")).to_have_text(["/hello first"])
    expect(screen.page).to_have_url(f"{screen.site.address}/?c={first}")
    expect(screen.page.locator("#conversations label.selected")).to_have_text("/hello first")
    screen.page.reload()
    screen.ready()
    expect(screen.page.locator("#chat .said")).to_have_text(["/hello first"])
    screen.new()
    expect(screen.page).to_have_url(f"{screen.site.address}/")


def test_an_answer_goes_on_while_another_conversation_is_shown(screen: Screen) -> None:
    """Words of one conversation never come into another; back there, the answer is whole."""
    screen.ask("/count 30 0.1")
    expect(screen.last).to_contain_text("n3 ")
    screen.new().ask("/hello").answered()
    screen.page.wait_for_timeout(1000)  # nothing may happen here: the other answer makes eight updates a second
    expect(screen.answers).to_have_count(1)
    expect(screen.last).to_contain_text("Hello!")
    screen.list.nth(1).click()
    expect(screen.page.locator("#chat .said")).to_have_text(["/count 30 0.1"])
    screen.answered()
    expect(screen.last).to_contain_text("counted.")


def test_a_choice_sends_its_text(screen: Screen) -> None:
    """A click on a follow-up asks it, of the plugin that it names."""
    screen.ask("/everything").answered()
    screen.last.get_by_role("button", name="Order 4711").click()
    screen.answered(2)
    expect(screen.page.locator("#chat .said").last).to_have_text("/hello hello from 4711")
    expect(screen.last).to_contain_text("Hello! Ask me")


def test_an_action_asks_and_is_done_once(screen: Screen, watch: Watch) -> None:
    """A click asks what it says it asks; declined it does nothing, accepted it is done, clicked again it is not done again."""
    screen.ask("/everything").answered()
    asked: list[str] = []

    def decline(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    screen.page.once("dialog", decline)
    action = screen.last.get_by_role("button", name="Refund the order")
    action.click()
    expect(screen.answers).to_have_count(1)
    screen.page.on("dialog", lambda dialog: dialog.accept())
    action.click()
    screen.answered(2)
    expect(screen.last).to_contain_text("Done: refund of 4711.")
    screen.answers.first.get_by_role("button", name="Refund the order").click()
    screen.page.wait_for_timeout(1500)  # nothing may happen
    screen.answered(2)
    assert asked == ["Refund 59.90?"]
    assert watch.dialogs == []


def test_a_file_is_saved(screen: Screen) -> None:
    """A click saves it under its name."""
    screen.ask("/everything").answered()
    with screen.page.expect_download() as download:
        screen.last.get_by_role("link", name="invoice 4711.txt").click()
    assert download.value.suggested_filename == "invoice 4711.txt"
    assert Path(download.value.path()).read_text() == "Invoice 4711\nTotal 59.90\n"


def test_enter_sends_and_shift_enter_makes_a_line(screen: Screen) -> None:
    """As everybody's fingers know it; an empty message is not sent."""
    with screen.page.expect_response(
        "**/queue/join*"
    ):  # Gradio reads the box when it sends, which may be later than the key
        screen.box.press("Enter")
    expect(screen.answers).to_have_count(0)
    screen.box.fill("/hello one")
    screen.box.press("Shift+Enter")
    screen.box.press_sequentially("two")
    expect(screen.box).to_have_value("/hello one\ntwo")
    expect(screen.answers).to_have_count(0)
    screen.box.press("Enter")
    screen.answered()
    expect(screen.box).to_have_value("")
    expect(screen.page.locator("#chat .said")).to_have_text("/hello one\ntwo", use_inner_text=True)


def test_all_is_there_after_a_restart(screen: Screen, site: Site, watch: Watch) -> None:
    """The program is started again: an open page says so while it is gone, comes back by itself, and goes on; nothing is lost."""
    screen.ask("/hello one").answered()
    first = screen.conversation
    screen.new().ask(QUESTION).answered()
    text = screen.last.inner_text()
    watch.down = True
    site.stop()
    expect(screen.page.locator("body.offline")).to_have_count(1)
    site.start()
    expect(screen.page.locator("body.offline")).to_have_count(0)
    screen.ask("/hello again").answered(2)
    expect(screen.list).to_have_text([QUESTION, "/hello one"])
    screen.page.reload()
    screen.ready().answered(2)
    assert screen.answers.first.inner_text() == text
    screen.list.nth(1).click()
    expect(screen.page.locator("#chat .said")).to_have_text(["/hello one"])
    assert screen.conversation == first


def test_visitors_do_not_see_each_other(screen: Screen, visitor: Open, site: Site) -> None:
    """Another browser with the address of a conversation gets an empty page."""
    screen.ask("/hello").answered()
    other = Screen(visitor().new_page(), site).open(f"/?c={screen.conversation}")
    expect(other.page.locator("#chat .empty")).to_be_visible()
    expect(other.list).to_have_count(0)
    expect(other.page).to_have_url(f"{site.address}/")
