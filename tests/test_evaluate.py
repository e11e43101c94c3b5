"""The protocol: what is asked, what each verdict is worth, and models whose metrics are known beforehand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conftest import TOWNS, force_routing
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.evaluate import Evaluation, EvaluationSettings, Metrics, evaluate, examples
from megedit.evaluate import protocol as protocol_module
from megedit.evaluate.protocol import Case, Verdict, cases_of, summarise
from megedit.fit import tokenize
from megedit.model import MegModel

SETTINGS = EvaluationSettings(max_new_tokens=6, batch_size=5)
PERFECT = Metrics(*[100.0] * 6)


def test_the_cases() -> None:
    edits = [Edit("1", "Q1", "A1", rephrases=("R1", "R1b"), neighbours=("N1", "N1b")), Edit("2", "Q2", "A2")]
    assert cases_of(edits) == [
        Case("1", "reliability", "Q1", "A1"),
        Case("1", "generality", "R1", "A1"),
        Case("1", "locality", "N1", None),
        Case("2", "reliability", "Q2", "A2"),
    ]


def test_the_summary() -> None:
    def verdict(kind: protocol_module.Kind, ag: float, tf: float) -> Verdict:
        return Verdict(Case("1", kind, "q", None), "answer", False, ag, tf)

    verdicts = [
        verdict("reliability", 1, 1),
        verdict("reliability", 0, 0.5),
        verdict("generality", 1, 0.25),
        verdict("locality", 0, 0.75),
        verdict("locality", 0, 0),
    ]
    assert summarise(verdicts) == Metrics(50.0, 75.0, 100.0, 25.0, 0.0, 37.5)
    assert summarise(verdicts[:2]) == Metrics(50.0, 75.0, None, None, None, None)
    assert summarise([]) == Metrics(*[None] * 6)


def test_a_perfect_model(oracle: MegModel) -> None:
    """The router never errs and the collected neurons give every target: all is 100."""
    done: list[int] = []
    result = evaluate(oracle, oracle.edits, SETTINGS, done.append)
    assert result.edited == PERFECT and result.edited.score == pytest.approx(100)
    assert result.counts == {"reliability": 8, "generality": 8, "locality": 8} and sum(done) == 24
    assert (result.unedited.locality_ag, result.unedited.locality_tf) == (100.0, 100.0)
    assert (result.unedited.reliability_ag, result.unedited.generality_ag, result.unedited.score) == (0, 0, 0)
    familiar = {verdict.case.query for verdict in result.verdicts if verdict.familiar}
    assert familiar == {text for edit in oracle.edits for text in (edit.prompt, edit.rephrases[0])}
    assert not any(verdict.familiar for verdict in result.unedited_verdicts)


def test_a_model_that_always_answers_the_target(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfect on edits and rephrases, and no locality at all."""
    texts = {text: i for i, edit in enumerate(model.edits) for text in (edit.prompt, *edit.rephrases, *edit.neighbours)}
    force_routing(model, monkeypatch, texts)
    result = evaluate(model, model.edits, SETTINGS)
    assert (result.edited.reliability_ag, result.edited.generality_ag, result.edited.locality_ag) == (100, 100, 0)
    # what is forced is "Fr" and "."; the first is never the first choice, the second may be
    assert result.edited.locality_tf is not None and result.edited.locality_tf <= 50
    assert result.edited.score == 0.0
    assert [v.answer for v in result.verdicts if v.case.kind == "locality"] == [
        f"{TOWNS[int(v.case.edit_id[-1])]}." for v in result.verdicts if v.case.kind == "locality"
    ]


def test_a_model_without_edits_in_force(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    force_routing(model, monkeypatch, {})
    result = evaluate(model, model.edits, SETTINGS)
    assert result.edited == result.unedited
    assert [v.answer for v in result.verdicts] == [v.answer for v in result.unedited_verdicts] == ["Fr."] * 24


def test_the_model_as_fitted(model: MegModel) -> None:
    """Its router lets everything through, so that it is right on the edits and loses locality."""
    result = evaluate(model, model.edits, SETTINGS)
    assert result.edited.reliability_ag == result.edited.reliability_tf == 100.0
    for verdict in result.verdicts:
        assert verdict.familiar == model.route(verdict.case.query).familiar


def by_query(result: Evaluation) -> dict[tuple[str, str], tuple[Verdict, Verdict]]:
    return {
        (edited.case.kind, edited.case.query): (edited, unedited)
        for edited, unedited in zip(result.verdicts, result.unedited_verdicts, strict=True)
    }


def test_the_batch_does_not_matter(model: MegModel) -> None:
    """In float32; in bfloat16 the answers of any model depend on its batch."""
    results = [evaluate(model, model.edits, replace(SETTINGS, batch_size=size)) for size in (1, 3, 64)]
    assert by_query(results[0]) == by_query(results[1]) == by_query(results[2])
    assert results[0].edited == results[1].edited == results[2].edited


@pytest.mark.parametrize("router", ["fitted", "perfect", "all"])
def test_teacher_forcing_is_left_out_only_where_it_is_known(
    model: MegModel, monkeypatch: pytest.MonkeyPatch, router: str
) -> None:
    if router != "fitted":
        texts = {
            text: i
            for i, edit in enumerate(model.edits)
            for text in (edit.prompt, *edit.rephrases, *(edit.neighbours if router == "all" else ()))
        }
        force_routing(model, monkeypatch, texts)
    forced = protocol_module._teacher_forced
    short = evaluate(model, model.edits, SETTINGS)

    def always(
        model: MegModel, queries: list[str], wanted: list[list[int]], generated: object, edits: object
    ) -> object:
        return forced(model, queries, wanted, [[-1]] * len(queries), edits)  # type: ignore[arg-type]

    monkeypatch.setattr(protocol_module, "_teacher_forced", always)
    assert evaluate(model, model.edits, SETTINGS) == short


def test_a_target_of_several_tokens_in_part(oracle: MegModel) -> None:
    """The neuron says `Par.`; of the target `Par capital` the first of two tokens is the first choice."""
    edit = replace(oracle.edits[0], target="Par capital", rephrases=(), neighbours=())
    assert len(oracle.tokenizer("Par capital").input_ids) == 2
    (verdict,) = evaluate(oracle, [edit], SETTINGS).verdicts
    assert (verdict.answer, verdict.ag, verdict.tf) == ("Par.", 0.0, 0.5)


def test_edits_without_rephrases_or_neighbours(oracle: MegModel) -> None:
    bare = [replace(edit, rephrases=(), neighbours=()) for edit in oracle.edits]
    result = evaluate(oracle, bare, SETTINGS)
    assert result.edited == Metrics(100.0, 100.0, None, None, None, None)
    assert result.edited.score is None and result.unedited.score is None
    assert result.counts == {"reliability": 8, "generality": 0, "locality": 0}


def test_nothing_to_evaluate(model: MegModel) -> None:
    with pytest.raises(MegError, match="no edits to evaluate"):
        evaluate(model, [])


def test_matching_the_beginning(oracle: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that goes on after the target is right for `begins` and wrong for `whole`."""
    monkeypatch.setattr(
        MegModel,
        "answer_tokens",
        lambda model, queries, *rest: [model.tokenizer("Par, capital").input_ids] * len(queries),
    )
    edit = replace(oracle.edits[0], rephrases=(), neighbours=())
    assert evaluate(oracle, [edit], SETTINGS).edited.reliability_ag == 0.0
    assert evaluate(oracle, [edit], replace(SETTINGS, match="begins")).edited.reliability_ag == 100.0
    with pytest.raises(ValueError, match=r"match must be one of \['begins', 'whole'\]"):
        EvaluationSettings(match="exact")


def test_an_answer_that_is_cut_off_is_not_the_target(oracle: MegModel) -> None:
    """What counts is the whole answer, so the limit must leave room for it."""
    result = evaluate(oracle, oracle.edits, replace(SETTINGS, max_new_tokens=1))
    assert result.edited.reliability_ag == 100.0  # one token is the whole target
    two = replace(oracle.edits[0], target="Par. Par", rephrases=(), neighbours=())
    assert evaluate(oracle, [two], replace(SETTINGS, max_new_tokens=1)).edited.reliability_ag == 0.0


def test_the_result_as_json(oracle: MegModel) -> None:
    result = evaluate(oracle, oracle.edits, SETTINGS)
    values = json.loads(json.dumps(result.to_json()))
    assert values["settings"] == {
        "protocol": "paper",
        "version": 1,
        "max_new_tokens": 6,
        "batch_size": 5,
        "match": "whole",
    }
    assert values["edited"]["score"] == pytest.approx(100) and values["unedited"]["reliability_ag"] == 0
    assert len(values["verdicts"]) == len(values["unedited_verdicts"]) == 24
    first = values["verdicts"][0]
    assert set(first) == {"case", "answer", "familiar", "ag", "tf"}
    assert set(first["case"]) == {"edit_id", "kind", "query", "target"}


def test_examples(oracle: MegModel) -> None:
    edits = [replace(oracle.edits[0], neighbours=()), *oracle.edits[1:]]
    result = evaluate(oracle, edits, SETTINGS)
    shown = examples(result, 2)
    assert len(shown) == 6  # the first edit has no third case and is passed over
    assert {case.edit_id for case, _, _ in shown} <= {f"edit-{i}" for i in range(1, 8)}
    assert [case.kind for case, _, _ in shown[:3]] == ["reliability", "generality", "locality"]
    for case, base, edited in shown:
        assert (base, edited) == ("Fr", "Fr" if case.target is None else case.target)
    bare = evaluate(oracle, [replace(edit, neighbours=()) for edit in edits], SETTINGS)
    assert len(examples(bare, 2)) == 4
    assert examples(result, 0) == []


def test_targets_are_encoded_as_the_fit_encodes_them(model: MegModel) -> None:
    template = model.adapter.config.template
    for edit in model.edits:
        example = tokenize(model.tokenizer, template, edit)
        ids = protocol_module._target_tokens(model, edit.prompt, edit.target)
        assert tuple(ids) == example.answer[: len(ids)] and len(ids) == len(example.answer) - 2  # "." and the end
