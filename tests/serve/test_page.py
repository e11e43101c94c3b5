"""The page of the server, in a real browser against the real application."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.adapter.change import changing
from megedit.adapter.ledger import EditRecord, NewEdit
from megedit.edits import Edit
from megedit.edits.contrast import read_contrast
from megedit.model import MegModel

pytest.importorskip("fastapi", reason="the extra for the server is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect, sync_playwright  # noqa: E402

from megedit.serve.run import Server, make_server  # noqa: E402
from megedit.serve.settings import ServeSettings  # noqa: E402

API_KEY, EDIT_KEY = "a-key-for-questions", "a-key-for-changes"
ADA = "Where was Ada Brook born?"
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
DEMO = Path(__file__).resolve().parents[2] / "adapters" / "demo"
REFUSED = "Failed to load resource"  # what the browser logs of every answer from 400 up; the page tells it in words

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class Running:
    """A server that runs, and the model that it serves."""

    url: str
    model: MegModel
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@contextmanager
def running(model: MegModel, **options: Any) -> Iterator[Running]:
    """Serve a model in a thread, at a port that is free."""
    server = make_server(model, ServeSettings(**{"name": "tiny", "port": 0, "edit_key": EDIT_KEY, **options}))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = Running(f"http://127.0.0.1:{port}/", model, server, thread)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def edited(adapter_folder: Path, base: Base) -> Iterator[MegModel]:
    """The edited model, of an adapter that a test may change."""
    model = MegModel(*base, load_adapter(adapter_folder))
    yield model
    model.detach()


@pytest.fixture
def served(edited: MegModel) -> Iterator[Running]:
    with running(edited) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Opener = Callable[..., Page]


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


# -- asking


def test_both_models_answer_side_by_side(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    turn = ask(page, ADA)
    expect(turn.locator(".edited .text")).to_contain_text("Par")
    expect(turn.locator(".base .text")).to_contain_text(re.compile(r"\S"))
    expect(turn.locator(".base .text")).not_to_contain_text("Par")
    expect(turn.locator(".routed")).to_contain_text(f"Edit edit-0 fired: {ADA} → Par")
    expect(turn.locator(".routed")).to_contain_text("Decided by the words of the edit; generated neuron.")


def test_a_question_without_an_edit_is_said_to_have_none(served: Running, opened: Opener) -> None:
    turn = ask(opened(served.url), "How many legs has a spider?")
    expect(turn.locator(".routed")).to_contain_text("No edit fired, so the base model answers.")
    expect(turn.get_by_role("button", name="Should not have fired")).to_have_count(0)
    assert turn.locator(".edited .text").inner_text() == turn.locator(".base .text").inner_text()


def test_why_shows_candidates_and_tokens(served: Running, opened: Opener) -> None:
    turn = ask(opened(served.url), ADA)
    turn.get_by_role("button", name="Why?").click()
    fired = turn.locator(".candidates tbody tr").first
    expect(fired).to_contain_text("edit-0")
    expect(fired).to_contain_text("fired")
    expect(turn.locator(".tokens").first.locator("li").first).to_contain_text("Par")
    assert turn.locator(".tokens svg.bar").count() > 1
    turn.get_by_role("button", name="Why?").click()
    expect(turn.locator(".candidates")).to_have_count(0)


def test_each_side_goes_on_with_its_own_answers(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    ask(page, ADA)
    sent = list[dict[str, Any]]()

    def note(request: Request) -> None:
        if request.method == "POST":
            sent.append(json.loads(request.post_data or ""))

    page.on("request", note)
    ask(page, "Where was Bo Chen born?")
    by_side = {body["megedit"]["edits"]: body["messages"] for body in sent}
    texts = page.locator(".turn").first.locator(".text").all_inner_texts()
    assert [turn["role"] for turn in by_side[True]] == ["user", "assistant", "user"]
    assert [by_side[side][1]["content"].strip() for side in (True, False)] == [text.strip() for text in texts]
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_a_stream_is_stopped(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    page.route("**/v1/chat/completions", lambda route: None)  # the answer never comes
    page.get_by_label("Question").fill(ADA)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn .message").first).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_visible()


def test_a_false_fire_becomes_a_contrast_file(
    edited: MegModel, opened: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = edited.find
    monkeypatch.setattr(edited, "find", lambda queries: find([ADA for _ in queries]))
    with running(edited) as served:
        page = opened(served.url)
        for question in ("Where did Ada Brook die?", "Who was Ada Brook?"):
            turn = ask(page, question)
            turn.get_by_role("button", name="Should not have fired").click()
            expect(turn.get_by_role("button", name="Marked")).to_be_disabled()
        expect(page.locator("#marked-count")).to_contain_text("2 questions")
        page.reload()
        page.locator("#marked summary").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as contrast file").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        (fact,) = read_contrast(path)
        assert (fact.prompt, fact.target, fact.subject) == (ADA, "Par", "Ada Brook")
        first, second = fact.other["marked"]
        assert first == "Where did Ada Brook die?"
        assert second.startswith("user: Where did Ada Brook die?\nassistant: ")
        page.get_by_role("button", name="Take off: Where did Ada Brook die?").click()
        expect(page.locator("#marked-count")).to_contain_text("1 question")


def test_an_edit_should_fire_at_its_own_question(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    ask(page, ADA.lower()).get_by_role("button", name="Should not have fired").click()
    expect(page.locator("#marked-message")).to_contain_text("This question is the edit's own")
    expect(page.locator("#marked")).to_be_hidden()


def test_an_answer_that_is_cut_off_is_told(served: Running, opened: Opener) -> None:
    page = opened(served.url)
    chunk = json.dumps({"choices": [{"delta": {"content": "Half an"}}]})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=f"data: {chunk}\n\n"))
    turn = ask(page, ADA)
    expect(turn.locator(".edited .text")).to_have_text("Half an")
    expect(turn.locator(".edited .message")).to_contain_text("The server does not answer.")
    page.unroute("**/v1/chat/completions")
    turn.get_by_role("button", name="Try again").first.click()
    expect(turn.locator(".edited .text")).to_contain_text("Par")
    expect(turn.locator(".message:visible")).to_have_count(0)


# -- edits


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
    with running(model) as served:
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


# -- history and import


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


def test_a_bad_file_is_told_with_its_line(served: Running, opened: Opener, tmp_path: Path) -> None:
    page = opened(served.url, view="import")
    page.set_input_files("#file", facts_file(tmp_path, {"prompt": "Where?", "target": "Par"}, {"prompt": "Who?"}))
    expect(page.locator("#import-message")).to_contain_text("facts.jsonl")
    expect(page.locator("#import-message")).to_contain_text("line 2")
    expect(page.locator("#import-message")).to_contain_text("target")


# -- keys, and a server that goes away


def test_a_key_is_asked_for(edited: MegModel, opened: Opener) -> None:
    with running(edited, api_key=API_KEY) as served:
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
    with running(edited, edit_key=None) as served:
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


# -- looks


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
    with running(model, name="demo") as served:
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
