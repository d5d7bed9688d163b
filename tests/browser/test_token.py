"""The address that the program prints makes one browser the administrator."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open, Screen, Site, Watch

pytestmark = pytest.mark.browser


def test_the_printed_address_makes_one_administrator(visitor: Open, site: Site, watch: Watch) -> None:
    """The first browser becomes it, keeps it, and shows no token; the second one is told why not, and goes on as a customer."""
    assert site.served is not None
    first = visitor().new_page()
    screen = Screen(first, site)
    screen.open("/")
    screen.ask("/vault").answered()
    expect(screen.last).to_contain_text("There is no plugin /vault here.")
    first.goto(site.served.printed)
    screen.ready()
    expect(first).to_have_url(f"{site.address}/")
    expect(screen.list).to_have_text(["/vault"])
    screen.ask("/vault").answered()
    expect(screen.last).to_contain_text("the vault is open")
    first.goto(site.served.printed)
    screen.ready()
    screen.ask("/vault").answered()
    expect(screen.last).to_contain_text("the vault is open")

    watch.down = True  # the refused address is an error on the console
    second = visitor().new_page()
    response = second.goto(site.served.printed)
    assert response is not None
    assert response.status == 403
    expect(second.locator("body")).to_contain_text("This address was used before")
    customer = Screen(second, site).open()
    customer.ask("/vault").answered()
    expect(customer.last).to_contain_text("There is no plugin /vault here.")
