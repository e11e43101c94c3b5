"""The page's report of evaluations."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import expect

from megedit.model import MegModel
from tests.results import full_result
from tests.serve.page.browser import API_KEY, Opener, serving
from tests.serve.running import Running


def test_the_report_is_shown_with_its_plots(edited: MegModel, opened: Opener, tmp_path: Path) -> None:
    """In the look of its own, which the page's policy allows for it alone, and with the key that the page has."""
    file = tmp_path / "result.json"
    file.write_text(json.dumps(full_result()))
    with serving(edited, results=(file,), api_key=API_KEY) as served:
        page = opened(served.url)
        page.get_by_role("link", name="Report").click()
        frame = page.frame_locator("#report")
        expect(frame.locator("h1")).to_be_visible()
        expect(frame.locator("svg").first).to_be_visible()
        assert frame.locator("body").evaluate("body => getComputedStyle(body).maxWidth") == "992px"
        room = page.locator("#report").evaluate("it => it.offsetHeight - it.contentDocument.body.scrollHeight")
        assert room >= 0  # it needs no scroll bar of its own
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.reload()
        expect(page.frame_locator("#report").locator("h1")).to_be_visible()


def test_without_results_there_is_no_report(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    expect(page.locator("#adapter")).to_contain_text("revision")
    expect(page.get_by_role("link", name="Report")).to_be_hidden()
