"""Why an answer is wrong, on verdicts made by hand; how failures are counted and shown."""

from __future__ import annotations

import pytest

from megedit.evaluate.report import render_report
from megedit.evaluate.report.details import failures
from megedit.evaluate.report.failures import Failure, classify
from tests.results import Json, result, route, verdict


@pytest.mark.parametrize(
    ("kind", "values", "routing", "failure"),
    [
        ("reliability", {"ag": 1.0}, route(familiar=False), None),
        ("reliability", {"ag": 0.0}, route(familiar=False, nearest="e2"), "not routed"),
        ("generality", {"ag": 0.0}, route(nearest="e2"), "wrong neuron"),
        ("robustness:typos", {"ag": 0.0}, route(nearest="e1"), "right neuron, wrong words"),
        ("reliability", {"ag": 0.0}, None, "wrong answer"),
        ("locality", {"ag": 0.0}, route(), "neighbour disturbed"),
        ("locality", {"ag": 0.0}, None, "neighbour disturbed"),
        ("locality", {"ag": 1.0}, route(), None),
        ("neighbourhood", {"success": 0.0}, route(familiar=False), "neighbour disturbed"),
        ("reliability", {"tf": 0.0}, route(familiar=False), None),
        ("generation", {"entropy": 0.2}, route(), None),
        ("reliability", {"exact": 0.0, "contains": 1.0}, route(), "right neuron, wrong words"),
        ("reliability", {"exact": 1.0, "contains": 0.0}, route(), None),
        ("efficacy", {"success": 0.0}, route(), "right neuron, wrong words"),
        ("reliability", {"begins": 0.0, "tf": 1.0}, route(), "right neuron, wrong words"),
        ("reliability", {"tf": 0.5, "success": 0.0, "ag": 1.0}, route(), None),
        ("reliability", {"ag": None, "exact": 0.0}, route(), "right neuron, wrong words"),
        ("reliability", {}, route(), None),
    ],
)
def test_classify(kind: str, values: Json, routing: Json | None, failure: Failure | None) -> None:
    assert classify(verdict(kind, values, routing)) == failure


def test_any_edit_of_a_question_over_several_edits_is_its_own() -> None:
    question = verdict("multi_hop", {"exact": 0.0}, route(nearest="e2"), edit="case-7")
    assert classify(question) == "wrong neuron"
    assert classify(question, {"e1", "e2"}) == "right neuron, wrong words"
    hop = verdict("edit_wise", {"exact": 1.0}, route(nearest="e2"), edit="e2", group="case-7")
    found = failures(result([hop, question]), 5)
    assert found is not None
    assert [(each["name"], each["count"], each["of"]) for each in found] == [
        ("Not routed", 0, 2),
        ("Wrong neuron", 0, 2),
        ("Right neuron, wrong words", 1, 2),
    ]


def test_failures_are_counted_and_shown() -> None:
    verdicts = [
        *(verdict(query=f"query {i}", routing=route(familiar=False)) for i in range(6)),
        verdict("generality", routing=route(nearest="e9")),
        verdict("generality", {"ag": 1.0}, route()),
        verdict("locality", routing=route()),
        verdict("locality", {"ag": 1.0}, route(familiar=False)),
        verdict("generality", {"tf": 0.0}, route(familiar=False)),
    ]
    found = failures(result(verdicts), 3)
    assert found is not None
    assert [(each["name"], each["count"], each["of"], each["share"], len(each["examples"])) for each in found] == [
        ("Not routed", 6, 8, "75.0 %", 3),
        ("Wrong neuron", 1, 8, "12.5 %", 1),
        ("Right neuron, wrong words", 0, 8, "0.0 %", 0),
        ("Neighbour disturbed", 1, 2, "50.0 %", 1),
    ]
    assert [example["query"] for example in found[0]["examples"]] == ["query 0", "query 2", "query 4"]
    assert found[1]["examples"][0] == {
        "kind": "Generality",
        "edit": "e1",
        "query": "Who is it?",
        "expected": ["Ada"],
        "edited": "said by edited",
        "unedited": "said by unedited",
        "route": {
            "familiar": True,
            "numbers": "score 2.00, entropy 0.01, similarity 0.90 to",
            "nearest": "e9",
        },
    }
    page = render_report([result(verdicts)], examples=3)
    assert "Not routed: 6 of 8 questions (75.0 %)" in page
    assert page.count('class="example"') == 5
    assert render_report([result(verdicts)], examples=0).count('class="example"') == 0


def test_a_model_without_a_router_only_answers_wrong() -> None:
    found = failures(result([verdict(), verdict(values={"ag": 1.0})]), 5)
    assert found is not None
    assert [(each["name"], each["count"], each["of"]) for each in found] == [("Wrong answer", 1, 2)]


def test_answers_may_be_long_empty_or_missing() -> None:
    long, empty, missing = verdict(), verdict(), verdict(values={"success": 0.0})
    long["edited"]["answer"], empty["edited"]["answer"], missing["edited"]["answer"] = "x" * 301, " \n", None
    missing["unedited"] = None
    page = render_report([result([long, empty, missing])])
    assert "x" * 150 + " … " + "x" * 147 in page and "x" * 151 not in page
    assert page.count("no text") == 1
    assert page.count("<dt>Edited</dt>") == 2 and page.count("<dt>Unedited</dt>") == 2
