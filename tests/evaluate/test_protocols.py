"""Protocols: what each asks of which data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from megedit.edits import Edit, EditSet, Question
from megedit.errors import MegError
from megedit.evaluate import (
    Case,
    EvaluationSettings,
    cases_of,
    find_protocol,
)


def edit_set(*edits: Edit, questions: Sequence[Question] = (), **more: Any) -> EditSet:
    return EditSet(tuple(edits), "facts.jsonl", "plain jsonl", questions=tuple(questions), **more)


def test_the_cases_of_the_paper() -> None:
    edits = edit_set(
        Edit("1", "Q1", "A1", relation="P1", rephrases=("R1", "R1b"), neighbours=("N1", "N1b")), Edit("2", "Q2", "A2")
    )
    paper = find_protocol("paper")
    assert cases_of(edits, paper, EvaluationSettings()) == [
        Case("1", "1", "reliability", "Q1", ("A1",), "P1"),
        Case("1", "1", "generality", "R1", ("A1",), "P1"),
        Case("1", "1", "generality", "R1b", ("A1",), "P1"),
        Case("2", "2", "reliability", "Q2", ("A2",)),
        Case("1", "1", "locality", "N1", (), "P1"),
    ]
    queries = [case.query for case in cases_of(edits, paper, EvaluationSettings(rephrases=1, neighbours=2))]
    assert queries == ["Q1", "R1", "Q2", "N1", "N1b"]


def test_a_neighbour_that_is_edited_is_not_asked() -> None:
    edits = edit_set(Edit("1", "Who?", "A", neighbours=("where", "When?")), Edit("2", "Where?", "B"))
    asked = [c.query for c in cases_of(edits, find_protocol("paper"), EvaluationSettings()) if c.kind == "locality"]
    assert asked == ["When?"]


def test_the_robustness_row() -> None:
    settings = EvaluationSettings(robustness=("upper",))
    cases = cases_of(edit_set(Edit("1", "Who is it?", "A")), find_protocol("paper"), settings)
    assert cases[1] == Case("1", "1", "robustness:upper", "WHO IS IT?", ("A",))
    with pytest.raises(MegError, match="There is no perturbation 'shout'; choose from"):
        EvaluationSettings(robustness=("shout",))


def test_the_cases_of_counterfact() -> None:
    generation = Question("generation", "X is known for", (), "1")
    edit = Edit("1", "Q", "new", rephrases=("R",), neighbours=("N1", "N2"), target_true="old")
    cases = cases_of(edit_set(edit, questions=[generation]), find_protocol("counterfact"), EvaluationSettings())
    assert cases == [
        Case("1", "1", "efficacy", "Q", ("new",), None, "old"),
        Case("1", "1", "paraphrase", "R", ("new",), None, "old"),
        Case("1", "1", "neighbourhood", "N1", ("old",), None, "new"),
        Case("1", "1", "neighbourhood", "N2", ("old",), None, "new"),
        Case("1", "1", "generation", "X is known for"),
    ]


def test_the_cases_of_multi_hop() -> None:
    edits = edit_set(
        Edit("a", "Q1", "A1"),
        Edit("b", "Q2", "A2"),
        questions=[
            Question("single_hop", "S1", ("A1",), "case"),
            Question("multi_hop", "M1", ("A2", "alias"), "case"),
        ],
        instances={"case": ("a", "b")},
    )
    assert cases_of(edits, find_protocol("multi-hop"), EvaluationSettings()) == [
        Case("a", "case", "edit_wise", "Q1", ("A1",)),
        Case("b", "case", "edit_wise", "Q2", ("A2",)),
        Case("case", "case", "single_hop", "S1", ("A1",)),
        Case("case", "case", "multi_hop", "M1", ("A2", "alias")),
    ]


@pytest.mark.parametrize(
    ("protocol", "needs"),
    [
        ("counterfact", r"needs `target_true`, and 1 of 1 edits of facts.jsonl have none \(first: 1\)"),
        ("zsre-tf", r"needs neighbours with known answers \(`loc` and `loc_ans`\), and facts.jsonl has none"),
        ("multi-hop", r"needs questions over several edits .* facts.jsonl has none"),
    ],
)
def test_data_without_what_a_protocol_needs(protocol: str, needs: str) -> None:
    with pytest.raises(MegError, match=needs):
        cases_of(edit_set(Edit("1", "Q", "A")), find_protocol(protocol), EvaluationSettings())


def test_unknown_protocol_and_settings() -> None:
    with pytest.raises(MegError, match="There is no protocol 'papers'; choose from paper, wild"):
        find_protocol("papers")
    with pytest.raises(MegError, match="call `contrast`, not `evaluate`"):
        find_protocol("contrast")
    with pytest.raises(MegError, match="batch_size is 0; it must be at least 1"):
        EvaluationSettings(batch_size=0)
    with pytest.raises(MegError, match="max_new_tokens is 0"):
        EvaluationSettings(max_new_tokens=0)
    with pytest.raises(MegError, match="There are no edits to evaluate"):
        cases_of(edit_set(), find_protocol("paper"), EvaluationSettings())
