"""`meg bench`: one row a method, in a process of its own; failures are rows; a second run makes what is missing."""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.comparison_tables import comparison, comparison_cost, comparison_quality
from megedit.baselines import bench as module
from megedit.baselines.bench import Bench, Job, Recorded, measure, run
from megedit.baselines.ft import FineTuningSettings
from megedit.cli.bench import numbers, settings_of, table, texts
from megedit.errors import MegError
from megedit.evaluate.systems import Answer
from tests.conftest import Fitted

CONTRAST = {
    "prompt": "Where was Ida Stone born?",
    "target": "Par",
    "subject": "Ida Stone",
    "fire": {"paraphrase": ["Name the birthplace of Ida Stone."]},
    "not": {"other_entity": ["Where was Ira Stone born?"]},
}


@pytest.fixture
def plan(fitted: Fitted, tmp_path: Path) -> Bench:
    edits = tmp_path / "edits.jsonl"
    edits.write_text("\n".join(json.dumps(edit.to_json()) for edit in fitted.edits), "utf-8")
    contrast = tmp_path / "contrast.jsonl"
    contrast.write_text(json.dumps(CONTRAST), "utf-8")
    settings = {"ft": FineTuningSettings(epochs=2), "locft-bf": FineTuningSettings(lr=float("inf"))}
    return Bench(str(fitted.base), str(edits), (8,), ("ft", "locft-bf"), 4, str(contrast), settings)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure in this process; what was measured."""
    measured: list[str] = []

    class Pool:
        def __init__(self, *args: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *args: Any) -> None: ...
        def submit(self, function: Any, job: Job, *args: Any) -> Any:
            measured.append(job.method)
            self.result = lambda: function(job, *args)
            return self

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    return measured


def test_rows(plan: Bench, in_this_process: list[str], tmp_path: Path) -> None:
    result = run(plan, tmp_path / "out", Console(quiet=True))
    unedited, tuned, diverged = result["rows"]
    assert [row["method"] for row in result["rows"]] == ["unedited", "ft", "locft-bf"]
    assert unedited["metrics"]["locality_ag"]["value"] == 100.0
    assert unedited["metrics"]["reliability_ag"]["count"] == 4
    assert tuned["restored"] is True and tuned["stored_bytes"] > 0 and tuned["seconds_per_edit"] > 0
    assert tuned["settings"]["epochs"] == 2 and tuned["contrast"]["recognised"]["count"] == 1
    assert "diverged" in diverged["error"] and "metrics" not in diverged
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert in_this_process == ["unedited", "ft", "locft-bf"]
    # the same again: only what failed is tried anew
    run(plan, tmp_path / "out", Console(quiet=True))
    assert in_this_process[3:] == ["locft-bf"]
    # another setting of one method
    run(
        replace(plan, settings={**plan.settings, "ft": FineTuningSettings(epochs=3)}),
        tmp_path / "out",
        Console(quiet=True),
    )
    assert in_this_process[4:] == ["ft", "locft-bf"]
    for made in (comparison, comparison_cost, comparison_quality):
        assert "| ft |" in made({"ours": result})
    printed = table(result["rows"], 8)
    assert printed.row_count == 3 and texts(unedited)[4] == "100.0"


def test_a_row_is_made_in_a_process_of_its_own(plan: Bench, tmp_path: Path) -> None:
    result = run(replace(plan, methods=()), tmp_path / "out", Console(quiet=True))
    assert result["rows"][0]["metrics"]["locality_ag"]["value"] == 100.0


def test_a_method_that_is_killed_is_a_row(plan: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed:
        def __init__(self, *args: Any) -> None: ...
        def __enter__(self) -> Killed:
            return self

        def __exit__(self, *args: Any) -> None: ...
        def submit(self, *args: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    result = run(plan, tmp_path / "out", Console(quiet=True))
    assert [row["error"] for row in result["rows"]] == [
        "its process was killed, most likely since there was no memory left"
    ] * 3
    assert comparison_cost({"ours": result}).count("was killed") == 3
    assert "failed" in comparison({"ours": result})


def test_input_that_cannot_be_used_is_told_at_once(plan: Bench, tmp_path: Path) -> None:
    with pytest.raises(MegError, match="9 were asked for"):
        run(replace(plan, sizes=(8, 9)), tmp_path / "out", Console(quiet=True))
    (tmp_path / "contrast.jsonl").write_text(json.dumps({**CONTRAST, "fire": "none"}), "utf-8")
    with pytest.raises(MegError, match=r"contrast\.jsonl"):
        run(plan, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_too_few_edits(plan: Bench, tmp_path: Path) -> None:
    with pytest.raises(MegError, match="has 8 edits that can be used; 9 were asked for"):
        measure(Job(plan, "unedited", 9), str(tmp_path), False)


def test_recorded_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"Who?": {"text": "Ada", "tokens": [3, 4], "cut": False}}), "utf-8")
    assert Recorded.load(path).answers(["Who?"], [20]) == [Answer("Ada", (3, 4), False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lr=1"], "'lr=1' is none of the methods"),
        (["memit.lr=1"], "'memit' is none of the methods that are measured, ft"),
        (["ft.rate=1"], "there is no setting 'ft.rate'"),
        (["ft.lr=fast"], "ft.lr can be a number, not 'fast'"),
        (["ft.lr"], "give a value, --set ft.lr=VALUE"),
    ],
)
def test_settings_that_cannot_be(changes: list[str], message: str) -> None:
    with pytest.raises(MegError, match=message):
        settings_of(["ft"], changes)


def test_settings_and_numbers() -> None:
    assert settings_of(["ft"], ["ft.lr=1e-4", "ft.epochs=3"]) == {"ft": FineTuningSettings(lr=1e-4, epochs=3)}
    assert numbers("4096,1024") == [1024, 4096]
    for wrong in ("", "many", "0", "-3"):
        with pytest.raises(MegError, match="--edits is"):
            numbers(wrong)
