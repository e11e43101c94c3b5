"""The parts that all tests of the page share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.model import MegModel
from megedit.serve.settings import ServeSettings
from tests.serve.running import Running, running

API_KEY, EDIT_KEY = "a-key-for-questions", "a-key-for-changes"
ADA = "Where was Ada Brook born?"
IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
DEMO = Path(__file__).resolve().parents[3] / "adapters" / "demo"
REFUSED = "Failed to load resource"  # what the browser logs of every answer from 400 up; the page tells it in words

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


Opener = Callable[..., Page]
CHROMIUM = shutil.which("chromium")


def serving(model: MegModel, **options: Any) -> AbstractContextManager[Running]:
    """A server of a model in which edits may be changed; options: of `ServeSettings`."""
    return running(model, ServeSettings(**{"name": "tiny", "port": 0, "edit_key": EDIT_KEY, **options}))


def row(page: Page, edit: str) -> Locator:
    """The row of an edit in the table."""
    return page.locator(f"#edits-rows tr[data-id='{edit}']")


def ask(page: Page, question: str) -> Locator:
    """Ask, and wait for both answers; the turn."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_visible()
    return page.locator(".turn").last


def confirm(page: Page, name: str) -> None:
    page.locator("#confirm-dialog").get_by_role("button", name=name).click()
