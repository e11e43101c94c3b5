"""The page in a real browser, against the real application; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from megedit.adapter.adapter import load_adapter
from megedit.model import MegModel
from tests.serve.page.browser import CHROMIUM, EDIT_KEY, REFUSED, Base, Opener, serving
from tests.serve.running import Running


@pytest.fixture
def edited(adapter_folder: Path, base: Base) -> Iterator[MegModel]:
    """The edited model, of an adapter that a test may change."""
    model = MegModel(*base, load_adapter(adapter_folder))
    yield model
    model.detach()


@pytest.fixture
def served(edited: MegModel) -> Iterator[Running]:
    with serving(edited) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def chromium() -> None:
    """Skip all tests here where there is no browser, before anything is started for them."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")


@pytest.fixture(scope="module")
def browser(chromium: None) -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens the page; at the end of the test its console must hold no error and no breach of its policy."""
    errors, contexts = list[str](), []

    def told(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            errors.append(message.text)

    def open_page(url: str, key: str | None = EDIT_KEY, view: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        if key:
            context.add_init_script(
                f"if (!sessionStorage.getItem('seen')) sessionStorage.setItem('megedit.key', '{key}');"
                "sessionStorage.setItem('seen', 'yes');"
            )
        page = context.new_page()
        page.on("console", told)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}#{view}")
        expect(page.locator("#adapter")).not_to_be_empty()
        return page

    expect.set_options(timeout=20_000)
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
