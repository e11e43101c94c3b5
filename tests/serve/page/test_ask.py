"""Asking on the page: both answers, why, and questions that should not have fired."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Request, expect

from megedit.edits.contrast import read_contrast
from megedit.model import MegModel
from tests.serve.page.browser import (
    ADA,
    Opener,
    ask,
    serving,
)
from tests.serve.running import Running


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
    with serving(edited) as served:
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
