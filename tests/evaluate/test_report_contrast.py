"""The report of the protocol `contrast`: what it says of one and of several results, and that texts are escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megedit.edits.contrast import read_contrast
from megedit.errors import MegError
from megedit.evaluate import contrast
from megedit.evaluate.report import load_result, render_report
from megedit.evaluate.report.contrast import failures
from tests.evaluate.test_report import Page
from tests.results import Json, result

DATA = Path(__file__).parent.parent / "data" / "contrast.jsonl"


def answers(queries: list[str]) -> list[str]:
    """A system that answers whatever has one of two words: it misses one text and answers two that it must not."""
    said = {"port": "8443", "charge": "Ines Duarte"}
    return [next((said[word] for word in said if word in query.splitlines()[-1]), "<i>No</i>") for query in queries]


@pytest.fixture
def measured() -> Json:
    """The result as a file has it."""
    values: Json = json.loads(
        json.dumps(contrast(answers, read_contrast(DATA), name="keywords", source="set").to_json())
    )
    return values


def test_the_shares(measured: Json) -> None:
    """Of five texts that ask for a fact, `Who runs billing?` is missed; of six others, two are answered."""
    assert measured["recognised"]["value"] == pytest.approx(80) and measured["recognised"]["count"] == 5
    assert measured["false"]["value"] == pytest.approx(100 / 3) and measured["false"]["count"] == 6


def test_failures_stand_by_kind(measured: Json) -> None:
    found = failures(measured, examples=1)
    assert [(each["name"], each["count"], each["of"]) for each in found] == [
        ("Missed, paraphrase", 1, 3),
        ("False, negation", 1, 1),
        ("False, time_shift", 1, 1),
    ]
    assert found[0]["examples"] == [
        {
            "query": "Who runs billing?",
            "fact": "Who is in charge of billing?",
            "fired": None,
            "score": None,
            "answer": "<i>No</i>",
        }
    ]
    assert found[1]["examples"][0]["fired"] == "Which port does the billing service use?"
    assert [each["examples"] for each in failures(measured, examples=0)] == [[], [], []]


def test_the_page(measured: Json) -> None:
    text = render_report([measured])
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        "What was measured",
        "Recognised and false",
        "Recognised, by kind",
        "False, by kind",
        "Failures",
        "Machine and versions",
    ]
    assert "Which questions fire an edit: keywords" in text and "Protocol contrast, version 1." in text
    assert "Missed, paraphrase: 1 of 3 texts" in text and '<th scope="row" dir="auto">time_shift</th>' in text
    assert "the answers" in text and "Set to let" not in text
    assert not {name for name, _ in page.tags} & {"script", "link", "img"} and "://" not in text


def test_several_results_stand_side_by_side(measured: Json) -> None:
    other = {**measured, "system": {"name": "router", "judged_by": "route", "false_fires": 3.0}}
    other["data"] = {**measured["data"], "left_out": {"trained on": 2, "asks for another fact": 0}}
    other["kinds"] = [each for each in measured["kinds"] if each["kind"] != "negation"]
    text = render_report([measured, other])
    page = Page(text)
    assert page.open == [] and "Texts left out" in page.headings
    assert "Which questions fire an edit: 2 systems" in text
    assert "<bdi>router</bdi>: Set to let 3.0 % of near misses fire, reached 33.3 %." in text
    assert "the edit that the system says it has used" in text
    assert "Trained on" in text and "Asks for another fact" not in text


def test_texts_of_the_data_are_escaped(measured: Json) -> None:
    evil = "<script>alert('1')</script>"
    verdict: dict[str, Any] = {"fact": 0, "side": "not", "kind": evil, "query": evil, "right": False}
    measured["verdicts"].append({**verdict, "edit": evil, "score": 0.5, "answer": evil})
    measured["kinds"].append({"side": "not", "kind": evil, "value": 100.0, "low": 100.0, "high": 100.0, "count": 1})
    measured["data"] |= {"source": evil, "prompts": [evil] * 2, "edits": {evil: evil}, "left_out": {evil: 1}}
    measured["system"]["name"] = evil
    for results in ([measured], [measured, measured]):
        text = render_report(results)
        assert "<script" not in text and text.count("&lt;script&gt;") > 10
        assert Page(text).open == []


def test_a_result_is_loaded_and_not_compared_with_another_protocol(measured: Json, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(measured), "utf-8")
    assert load_result(path) == measured
    with pytest.raises(MegError, match=r"different protocols, contrast version 1 and paper version 2"):
        render_report([measured, result()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, and this MegEdit reads format 1"),
        ({"data": {}}, "the field `data.source` is missing"),
        ({"verdicts": [{"fact": 1}]}, "the field `verdicts.side` is missing"),
    ],
)
def test_files_that_are_no_result(measured: Json, tmp_path: Path, changes: Json, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(measured | changes), "utf-8")
    with pytest.raises(MegError, match=message):
        load_result(path)
