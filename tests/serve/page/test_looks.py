"""The looks of the page: a phone, contrast, names; its pictures for the documents."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from megedit.model import MegModel
from tests.serve.page.browser import (
    ADA,
    DEMO,
    IMAGES,
    Opener,
    ask,
    row,
    serving,
)
from tests.serve.running import Running


def widest(page: Page) -> int:
    """The width that the page needs."""
    return int(page.evaluate("document.documentElement.scrollWidth"))


def test_a_phone_needs_no_sideways_scrolling(served: Running, opened: Opener) -> None:
    page = opened(served.url, viewport={"width": 360, "height": 740})
    turn = ask(page, ADA)
    turn.get_by_role("button", name="Why?").click()
    expect(turn.locator(".candidates")).to_be_visible()
    assert widest(page) <= 360
    for view, shown in (("Edits", "#edits-rows tr"), ("History", "#log > li"), ("Import", "#drop")):
        page.get_by_role("link", name=view).click()
        expect(page.locator(shown).first).to_be_visible()
        assert widest(page) <= 360, view
    page.get_by_role("link", name="Edits").click()
    page.get_by_role("button", name="Add an edit").click()
    box = page.locator("#edit-dialog").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360


CONTRAST = """
() => {
  const channel = (value) => ((value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = ({ rgb: [r, g, b] }) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.a) return colour;
    }
    return parse("rgb(255, 255, 255)");
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.disabled) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) low.push(`${node.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
  }
  return low;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(served: Running, opened: Opener, scheme: str) -> None:
    page = opened(served.url, color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    ask(page, ADA).get_by_role("button", name="Why?").click()
    expect(page.locator(".candidates")).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    for view, shown in (("Edits", "#edits-rows tr"), ("History", "#log > li"), ("Import", "#drop")):
        page.get_by_role("link", name=view).click()
        expect(page.locator(shown).first).to_be_visible()
        assert page.evaluate(CONTRAST) == [], view


def test_every_control_has_a_name(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    expect(row(page, "edit-0")).to_be_visible()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")].filter((node) =>
        !node.textContent.trim() && !node.labels?.length && !node.ariaLabel && node.id !== "confirm-yes")
        .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("header, main, nav[aria-label]").count() >= 3


@pytest.mark.skipif(not os.environ.get("MEGEDIT_SCREENSHOTS"), reason="MEGEDIT_SCREENSHOTS is not set")
@pytest.mark.skipif(not DEMO.is_dir(), reason="there is no demo adapter; make demo makes it")
def test_write_screenshots(opened: Opener, tmp_path: Path) -> None:
    """Write the pictures of the documentation."""
    model = MegModel.from_pretrained(str(shutil.copytree(DEMO, tmp_path / "demo")))
    with serving(model, name="demo") as served:
        page = opened(served.url, viewport={"width": 1100, "height": 1180})
        turn = ask(page, "What is the mother tongue of Danielle Darrieux?")
        turn.get_by_role("button", name="Why?").click()
        expect(turn.locator(".candidates")).to_be_visible()
        page.mouse.move(0, 0)
        page.screenshot(path=IMAGES / "page-ask.png")
        page.set_viewport_size({"width": 1100, "height": 700})
        page.get_by_role("link", name="Edits").click()
        expect(page.locator("#edits-rows tr")).to_have_count(50)
        page.screenshot(path=IMAGES / "page-edits.png")
    for name in ("page-ask.png", "page-edits.png"):
        assert (IMAGES / name).stat().st_size < 150_000
