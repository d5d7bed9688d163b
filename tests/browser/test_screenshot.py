"""Makes the picture of the README: `ASSISTANT_SCREENSHOT=docs/screenshot.png pytest tests/browser/test_screenshot.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Screen

pytestmark = pytest.mark.browser
TARGET = os.environ.get("ASSISTANT_SCREENSHOT", "")


@pytest.mark.skipif(not TARGET, reason="ASSISTANT_SCREENSHOT names no file")
def test_the_picture_of_the_readme(screen: Screen) -> None:
    """A question to the demo shop, answered, its source opened; 1200 x 800, under 200 KB."""
    screen.ask("how long do I have to send something back?").answered()
    screen.last.locator(".sources summary").first.click()
    expect(screen.last.locator(".sources blockquote").first).to_be_visible()
    screen.page.mouse.move(600, 5)
    screen.page.wait_for_timeout(500)  # colours glide from hover to rest
    screen.page.screenshot(path=TARGET)
    assert Path(TARGET).stat().st_size < 200_000
