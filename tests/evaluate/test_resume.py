"""Evaluations that were interrupted, and go on from their journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megedit.evaluate import (
    Answer,
    Evaluation,
    evaluate,
)
from megedit.evaluate.systems import MegSystem
from megedit.model import MegModel
from tests.evaluate.test_evaluate import SETTINGS, by_query


def interrupted(model: MegModel, batches: int, **options: Any) -> None:
    """Evaluate until so many batches are done."""
    stopped: list[int] = []

    def stop(done: int) -> None:
        stopped.append(done)
        if len(stopped) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, model.edits, **{"settings": SETTINGS, "progress": stop, **options})


def journals(cache: Path) -> list[Path]:
    return list(cache.glob("evaluations/*.jsonl"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that are answered freely from here on."""
    queries: list[str] = []
    answers = MegSystem.answers

    def remember(system: MegSystem, texts: Sequence[str], *rest: Any) -> list[Answer]:
        queries.extend(texts)
        return answers(system, texts, *rest)

    monkeypatch.setattr(MegSystem, "answers", remember)
    return queries


def test_an_interrupted_evaluation_goes_on(oracle: MegModel, cache: Path, asked: list[str]) -> None:
    whole = evaluate(oracle, oracle.edits, settings=SETTINGS, resume=False)
    assert not list(cache.glob("evaluations/*"))
    interrupted(oracle, 3)
    (journal,) = journals(cache)
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:
        file.write('{"batch": 3, "verdicts": [{"half')  # as if killed while writing
    asked.clear()
    again = evaluate(oracle, oracle.edits, settings=SETTINGS)
    assert again.verdicts == whole.verdicts and again.metrics == whole.metrics
    assert not list(cache.glob("evaluations/*"))
    assert not set(asked) & {edit.prompt for edit in oracle.edits}  # reliability: the first two batches
    assert {edit.neighbours[0] for edit in oracle.edits} <= set(asked)


def test_the_seconds_of_all_parts_are_counted(oracle: MegModel, cache: Path) -> None:
    interrupted(oracle, 3)
    (journal,) = journals(cache)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps({**line, "seconds": 1000.0}) + "\n" for line in lines))
    assert 3000 < evaluate(oracle, oracle.edits, settings=SETTINGS).seconds < 4000


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"batch": 0}', '{"batch": 99, "seconds": 1, "verdicts": []}', "\udcff"]
)
def test_a_mangled_line_of_a_journal_is_left_out(
    oracle: MegModel, cache: Path, asked: list[str], caplog: pytest.LogCaptureFixture, line: str
) -> None:
    interrupted(oracle, 2)
    (journal,) = journals(cache)
    _, second = journal.read_text().splitlines()
    journal.write_bytes(f"{line}\n{second}\n".encode(errors="surrogateescape"))
    asked.clear()
    result = evaluate(oracle, oracle.edits, settings=SETTINGS)
    assert f"1 lines of {journal} cannot be used" in caplog.text
    assert len([v for v in result.verdicts if v.case.kind == "reliability" and v.case.query in asked]) == 5
    assert result.edited.score == pytest.approx(100.0)


def test_verdicts_on_other_cases_are_not_taken(oracle: MegModel, cache: Path) -> None:
    """Routes may differ by rounding from run to run, and then the batches do."""
    interrupted(oracle, 2)
    (journal,) = journals(cache)
    first, second = (json.loads(line) for line in journal.read_text().splitlines())
    first["verdicts"][0]["query"] = "Another?"
    journal.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    result = evaluate(oracle, oracle.edits, settings=SETTINGS)
    assert by_query(result) == by_query(evaluate(oracle, oracle.edits, settings=SETTINGS, resume=False))


def test_every_evaluation_has_a_journal_of_its_own(oracle: MegModel, cache: Path) -> None:
    """Another setting, protocol or part of the edits neither goes on with a journal nor ends it."""
    interrupted(oracle, 1)
    (journal,) = journals(cache)
    content = journal.read_text()
    other = replace(SETTINGS, max_new_tokens=3)
    assert evaluate(oracle, oracle.edits, settings=other).protocol["settings"]["max_new_tokens"] == 3
    evaluate(oracle, oracle.edits[:4], settings=SETTINGS)
    interrupted(oracle, 1, protocol="wild")
    assert journal.read_text() == content and len(journals(cache)) == 2


def test_the_same_evaluation_twice_at_a_time(oracle: MegModel, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second keeps no journal, and both are whole."""
    inner: list[Evaluation] = []

    def again(done: int) -> None:
        if not inner:
            inner.append(evaluate(oracle, oracle.edits, settings=SETTINGS))
            assert len(journals(cache)[0].read_text().splitlines()) == 1

    outer = evaluate(oracle, oracle.edits, settings=SETTINGS, progress=again)
    assert outer.verdicts == inner[0].verdicts and "The same evaluation is running already" in caplog.text
    assert not list(cache.glob("evaluations/*"))
