"""The edits on the page: searched, added, changed, removed; contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from megedit.adapter.adapter import load_adapter
from megedit.adapter.change import changing
from megedit.adapter.ledger import EditRecord, NewEdit
from megedit.edits import Edit
from megedit.model import MegModel
from tests.serve.page.browser import (
    ADA,
    Base,
    Opener,
    confirm,
    row,
    serving,
)
from tests.serve.running import Running


def test_edits_are_searched_and_filtered(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    expect(page.locator("#edits-rows tr")).to_have_count(8)
    page.keyboard.press("/")
    page.keyboard.type("Bo Chen")
    expect(page.locator("#edits-rows tr")).to_have_count(1)
    expect(row(page, "edit-1")).to_contain_text("Where was Bo Chen born?")
    page.get_by_label("Status").select_option("failed")
    expect(page.locator("#edits-empty")).to_have_text("No such edit.")


def test_an_edit_is_added_by_keyboard_alone(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    expect(row(page, "edit-0")).to_be_visible()
    page.locator("#add").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    for text in ("Which river is in Quux?", "Jorge", "Quux"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.keyboard.type("What is the river of Quux?")
    page.keyboard.press("Tab")
    page.keyboard.type("Quuxland")
    page.keyboard.press("Tab")  # Cancel
    page.keyboard.press("Tab")
    expect(page.locator("#edit-save")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#edits-message")).to_contain_text("1 edit added. This is revision 2.")
    added = page.locator("#edits-rows tr").last
    expect(added).to_contain_text("Also asked: What is the river of Quux?")
    expect(added).to_contain_text("Also called: Quuxland")
    expect(added).to_contain_text("collected neuron")
    expect(page.locator("#add")).to_be_focused()


def test_escape_closes_a_dialog_and_changes_nothing(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    page.get_by_role("button", name="Add an edit").click()
    page.keyboard.press("Enter")
    expect(page.locator("#edit-error")).to_have_text("The prompt is missing.")
    page.keyboard.press("Escape")
    expect(page.locator("#edit-dialog")).to_be_hidden()
    row(page, "edit-0").get_by_role("button", name="Remove").click()
    page.keyboard.press("Escape")
    expect(row(page, "edit-0")).to_contain_text("Active")
    assert served.model.adapter.revision == 1


@pytest.mark.parametrize("choice", ["Replace the old", "Skip the new"])
def test_a_conflict_shows_both_sides_and_asks(served: Running, opened: Opener, choice: str) -> None:
    page = opened(served.url, view="edits")
    page.get_by_role("button", name="Add an edit").click()
    page.get_by_label("Prompt", exact=True).fill(ADA)
    page.get_by_label("Target").fill("Lu")
    page.get_by_role("button", name="Add", exact=True).click()
    conflict = page.locator("#edit-conflicts")
    expect(conflict).to_contain_text(f"{ADA} → Lu")
    expect(conflict).to_contain_text(f"{ADA} → Par edit-0")
    expect(page.get_by_role("button", name="Keep both")).to_have_count(0)  # one question has one answer
    page.get_by_role("button", name=choice).click()
    replaced = choice == "Replace the old"
    expect(page.locator("#edits-message")).to_contain_text("taken out, 1 added" if replaced else "Nothing was changed")
    prompts = page.locator("#edits-rows tr", has_text="Ada Brook")
    expect(prompts).to_have_count(1)
    expect(prompts).to_contain_text("Lu" if replaced else "Par")


def test_what_only_sounds_the_same_may_be_kept_beside(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    sides = {
        "new": {"id": "n", "prompt": "Who leads Atlas?", "target": "Ma"},
        "old": {"id": "o", "prompt": "Atlas?", "target": "Lu"},
    }
    conflict = {"kind": "rephrase", **sides, "similarity": 0.83, "same_file": False}
    asked = list[Any]()

    def adding(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "").get("on_conflict"))
        if asked[-1] is None:
            route.fulfill(status=409, json={"error": {"message": "1", "code": "conflict", "conflicts": [conflict]}})
        else:
            route.fulfill(json={"revision": 2, "changes": [], "skipped": [], "failed": []})

    page.route("**/v1/edits", adding)
    page.get_by_role("button", name="Add an edit").click()
    page.get_by_label("Prompt", exact=True).fill("Who leads Atlas?")
    page.get_by_label("Target").fill("Ma")
    page.keyboard.press("Enter")
    expect(page.locator("#edit-conflicts")).to_contain_text("Similarity 0.83")
    page.get_by_role("button", name="Keep both").click()
    expect(page.locator("#edit-dialog")).to_be_hidden()
    assert asked == [None, "keep"]


def test_an_edit_is_changed(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    row(page, "edit-0").get_by_role("button", name="Change").click()
    expect(page.locator("#edit-prompt")).to_have_text(ADA)
    page.get_by_label("Target").fill("Ma")
    page.get_by_label("Wordings").fill("Where is Ada Brook from?\n\n")
    page.locator("#edit-save").click()
    expect(row(page, "edit-0")).to_contain_text("Ma")
    expect(row(page, "edit-0")).to_contain_text("Also asked: Where is Ada Brook from?")


def test_an_edit_is_removed_and_brought_back(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    row(page, "edit-0").get_by_role("button", name="Remove").click()
    confirm(page, "Remove")
    expect(row(page, "edit-0")).to_contain_text("Removed")
    expect(row(page, "edit-0").get_by_role("button")).to_have_count(0)
    expect(page.locator("#edits-message").get_by_role("button", name="Undo")).to_be_focused()
    page.get_by_role("button", name="Undo last change").click()
    expect(row(page, "edit-0")).to_contain_text("Active")
    expect(page.locator("#edits-message")).to_contain_text("1 edit brought back. This is revision 3.")


def test_what_the_server_refuses_is_told_in_the_dialog(served: Running, opened: Opener) -> None:
    page = opened(served.url, view="edits")
    page.get_by_role("button", name="Add an edit").click()
    page.get_by_label("Prompt", exact=True).fill("Where was Eve born?")
    page.get_by_label("Target").fill("x" * 10_001)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#edit-error")).to_contain_text("at most 10000 characters")


def test_ten_thousand_edits_are_paged(adapter_folder: Path, base: Base, opened: Opener) -> None:
    with changing(adapter_folder, "add", "many") as change:
        change.add(
            NewEdit(EditRecord(edit, "failed", 0.0, 0, False), b"", b"")
            for edit in (Edit(f"n-{i}", f"What is the code of item {i}?", f"{i}") for i in range(10_000))
        )
    model = MegModel(*base, load_adapter(adapter_folder))
    with serving(model) as served:
        page = opened(served.url, view="edits")
        place, first = page.locator("#edits-range"), page.locator("#edits-rows tr").first
        expect(place).to_have_text("1 to 50 of 10,008")
        page.get_by_role("button", name="Next").click()
        expect(place).to_have_text("51 to 100 of 10,008")
        expect(first).to_contain_text("item 42?")
        assert page.locator("#edits-rows tr").count() == 50
        page.get_by_role("button", name="Previous").click()
        expect(first).to_contain_text("Ada Brook")
        page.get_by_label("Search").fill("item 9999?")
        expect(page.locator("#edits-rows tr")).to_have_count(1)
        page.get_by_label("Search").fill("")
        page.get_by_label("Status").select_option("active")
        expect(place).to_have_text("1 to 8 of 8")
        page.get_by_role("link", name="History").click()
        page.get_by_role("button", name="Changes of revision 2").click()
        expect(page.locator(".changes li")).to_have_count(50)
        page.get_by_role("button", name="Show more (9,950 changes)").click()
        expect(page.locator(".changes li")).to_have_count(100)
    model.detach()
