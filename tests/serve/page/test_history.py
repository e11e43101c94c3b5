"""History and import on the page."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.serve.page.browser import (
    ADA,
    Opener,
    confirm,
    row,
)
from tests.serve.running import Running


def test_history_shows_changes_and_goes_back(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    row(page, "edit-2").get_by_role("button", name="Remove").click()
    confirm(page, "Remove")
    expect(row(page, "edit-2")).to_contain_text("Removed")
    page.get_by_role("link", name="History").click()
    expect(page.locator("#log > li")).to_have_count(2)
    expect(page.locator("#log > li").first).to_contain_text("in force")
    page.get_by_role("button", name="Changes of revision 2").click()
    expect(page.locator(".changes li")).to_have_text([re.compile("^removed.*Cy Dale")])
    page.get_by_role("button", name="Roll back to revision 1").click()
    confirm(page, "Roll back")
    expect(page.locator("#history-message")).to_contain_text("1 edit brought back. This is revision 3.")
    expect(page.locator("#log > li").first).to_contain_text("revision 1 restored")


def test_consolidation_is_asked_for_and_followed(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="history")
    states = iter(["running", "running", "done"])

    def job(route: Route) -> None:
        known = {"id": "j", "kind": "consolidate", "stage": "Training the generator", "done": 1, "total": 4}
        outcome = {"revision": 2, "result": {"absorbed": 3}, "changes": []}
        route.fulfill(json={**known, "status": next(states), "result": outcome, "error": None})

    page.route("**/v1/edits/consolidate", job)
    page.route("**/v1/jobs/j", job)
    page.get_by_role("button", name="Consolidate").click()
    confirm(page, "Consolidate")
    expect(page.locator("#history-message")).to_contain_text("Training the generator: 1 of 4")
    expect(page.locator("#history-message")).to_contain_text("Consolidated. This is revision 2 · 3 absorbed.")


@pytest.mark.parametrize(
    ("kind", "view", "words"), [("consolidate", "history", "This is revision 2"), ("add", "import", "1 edit added")]
)
def test_a_job_is_followed_by_a_page_that_is_opened_later(
    served: Running, opened: Opener, kind: str, view: str, words: str
) -> None:
    """A reload loses nothing: what runs is shown with how far it is, then with what came of it."""
    page, ended = opened(served.url), threading.Event()

    def job(route: Route) -> None:
        change = {"edit": {"prompt": "Who?", "target": "Al"}, "before": None, "after": "active"}
        outcome = {"revision": 2, "result": {}, "changes": [change], "skipped": [], "failed": []}
        known = {"id": "j", "kind": kind, "stage": "Collecting neurons", "done": 1, "total": 4, "error": None}
        known |= {"status": "done", "result": outcome} if ended.is_set() else {"status": "running"}
        route.fulfill(json={"data": [known]} if route.request.url.endswith("jobs") else known)

    page.route("**/v1/jobs", job)
    page.route("**/v1/jobs/j", job)
    page.goto(f"{served.url}#{view}")
    message = page.locator(f"#{view}-message")
    expect(message).to_contain_text("Collecting neurons: 1 of 4")
    ended.set()
    expect(message).to_contain_text(words)


def facts_file(folder: Path, *facts: dict[str, Any]) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, facts)))
    return path


def test_a_file_is_previewed_then_added(served: Running, opened: Opener, tmp_path: Path) -> None:
    page = opened(served.url, view="import")
    new = {"prompt": "Which river is in Quux?", "target": "Jorge", "wordings": ["The river of Quux?"]}
    other = {"prompt": "Where was Bo Chen born?", "target": "Lu"}
    page.set_input_files("#file", facts_file(tmp_path, new, new, {"prompt": ADA, "target": "Par"}, other))
    preview = page.locator("#preview")
    expect(preview).to_contain_text("3 facts in the file, 1 of them in the adapter already, 1 conflict.")
    expect(preview).to_contain_text("Where was Bo Chen born? → Ital edit-1")
    expect(preview.locator("tbody tr")).to_have_count(2)
    preview.locator("summary").click()
    expect(preview.locator("details")).to_contain_text("left out")
    preview.get_by_label("Replace the old").check()
    preview.get_by_role("button", name="Add 2 facts").click()
    expect(page.locator("#import-message")).to_contain_text("2 added")
    page.get_by_role("link", name="Edits").click()
    expect(page.locator("#edits-rows tr", has_text="Bo Chen")).to_contain_text("Lu")
    expect(page.locator("#edits-rows tr", has_text="Quux")).to_contain_text("Also asked: The river of Quux?")


def test_a_file_is_dropped(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="import")
    fact = json.dumps({"prompt": "Which river is in Quux?", "target": "Jorge"})
    files = page.evaluate_handle(
        "text => { const data = new DataTransfer(); data.items.add(new File([text], 'facts.jsonl')); return data; }",
        fact,
    )
    page.locator("#drop").dispatch_event("dragover", {"dataTransfer": files})
    expect(page.locator("#drop")).to_have_class(re.compile("over"))
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": files})
    expect(page.locator("#preview")).to_contain_text("1 fact in the file")
    expect(page.locator("#drop")).not_to_have_class(re.compile("over"))


def test_a_bad_file_is_told_with_its_line(served: Running, opened: Opener, tmp_path: Path) -> None:
    page = opened(served.url, view="import")
    page.set_input_files("#file", facts_file(tmp_path, {"prompt": "Where?", "target": "Par"}, {"prompt": "Who?"}))
    expect(page.locator("#import-message")).to_contain_text("facts.jsonl")
    expect(page.locator("#import-message")).to_contain_text("line 2")
    expect(page.locator("#import-message")).to_contain_text("target")
