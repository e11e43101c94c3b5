"""Keys on the page, and a server that goes away."""

from __future__ import annotations

from playwright.sync_api import expect

from megedit.model import MegModel
from tests.serve.page.browser import (
    API_KEY,
    EDIT_KEY,
    Opener,
    row,
    serving,
)
from tests.serve.running import Running


def test_a_key_is_asked_for(edited: MegModel, opened: Opener) -> None:
    with serving(edited, api_key=API_KEY) as served:
        page = opened(served.url, key=None, view="edits")
        key = page.locator("#key-dialog")
        expect(key).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#needs-key")).to_contain_text("This server needs a key.")
        page.locator("#enter-key").click()
        key.get_by_label("Key of the server").fill("not-the-right-key-at-all")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_have_text("The server does not know this key.")
        key.get_by_label("Key of the server").fill(API_KEY)
        page.keyboard.press("Enter")
        expect(key).to_be_hidden()
        expect(page.locator("#needs-key")).to_be_hidden()
        expect(row(page, "edit-0")).to_be_visible()
        expect(page.get_by_role("button", name="Add an edit")).to_be_hidden()
        page.get_by_role("button", name="Enter the key").first.click()
        key.get_by_label("Key of the server").fill(EDIT_KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Add an edit")).to_be_visible()


def test_a_server_that_changes_nothing_says_so(edited: MegModel, opened: Opener) -> None:
    with serving(edited, edit_key=None) as served:
        for view in ("edits", "history", "import"):
            page = opened(served.url, key=None, view=view)
            expect(page.locator(f"#view-{view} .locked")).to_contain_text("Start it with --edit-key")
            expect(page.locator(".changing:visible")).to_have_count(0)


def test_a_server_that_goes_away_is_told_in_words(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    expect(row(page, "edit-0")).to_be_visible()
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_label("Search").fill("Ada")
    expect(page.locator("#away")).to_contain_text("The server does not answer.")
    expect(page.locator("#edits-message")).to_contain_text("The server does not answer.")
    page.unroute("**/v1/**")
    page.locator("#edits-message").get_by_role("button", name="Try again").click()
    expect(page.locator("#edits-rows tr")).to_have_count(1)
    expect(page.locator("#away")).to_be_hidden()
    expect(page.locator("#edits-message")).to_be_empty()
