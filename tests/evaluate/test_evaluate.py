"""Evaluation: what each verdict is worth, and models whose metrics are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.edits import Edit, EditSet
from megedit.errors import MegError
from megedit.evaluate import (
    PROTOCOLS,
    Answer,
    Evaluation,
    EvaluationSettings,
    FunctionSystem,
    Judgement,
    ModelSystem,
    Verdict,
    evaluate,
    find_protocol,
)
from megedit.evaluate.run import ENDING, run
from megedit.evaluate.systems import MegSystem
from megedit.lm.batches import tokenize
from megedit.lm.template import Template
from megedit.model import MegModel
from megedit.pseudo.knowledge import text_key
from tests.conftest import TOWNS, force_routing
from tests.evaluate.test_protocols import edit_set
from tests.tiny import tiny_model, tiny_tokenizer

SETTINGS = EvaluationSettings(max_new_tokens=6, batch_size=5, rephrases=1)
SIX = tuple(metric.name for metric in PROTOCOLS["paper"].metrics)


# ---------------------------------------------------------------------------------------------------
# What the verdicts are worth


# ---------------------------------------------------------------------------------------------------
# Models whose metrics are known


def test_a_perfect_model(oracle: MegModel) -> None:
    """The router never errs and the collected neurons give every target: all is 100."""
    done: list[int] = []
    result = evaluate(oracle, oracle.edits, settings=SETTINGS, progress=done.append)
    assert result.edited == pytest.approx(dict.fromkeys((*SIX, "score"), 100.0))
    assert result.counts == {"reliability": 8, "generality": 8, "locality": 8} and sum(done) == 24
    assert (result.unedited["locality_ag"], result.unedited["locality_tf"]) == (100.0, 100.0)
    assert [result.unedited[name] for name in ("reliability_ag", "generality_ag", "score")] == [0, 0, 0]
    familiar = {v.case.query for v in result.verdicts if v.route and v.route["familiar"]}
    assert familiar == {text for edit in oracle.edits for text in (edit.prompt, edit.rephrases[0])}


def test_a_model_that_always_answers_the_target(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfect on edits and rephrases, and no locality at all."""
    texts = {text: i for i, edit in enumerate(model.edits) for text in (edit.prompt, *edit.rephrases, *edit.neighbours)}
    force_routing(model, monkeypatch, texts)
    result = evaluate(model, model.edits, settings=SETTINGS)
    assert [result.edited[name] for name in ("reliability_ag", "generality_ag", "locality_ag")] == [100, 100, 0]
    # what is forced is "Fr" and "."; the first is never the first choice, the second may be
    assert (result.edited["locality_tf"] or 0) <= 50
    assert result.edited["score"] == 0.0
    local = [v for v in result.verdicts if v.case.kind == "locality"]
    assert [v.edited.answer for v in local] == [f"{TOWNS[int(v.case.edit[-1])]}." for v in local]


def test_a_model_without_edits_in_force(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    force_routing(model, monkeypatch, {})
    result = evaluate(model, model.edits, settings=SETTINGS)
    assert result.edited == result.unedited
    assert [v.edited.answer for v in result.verdicts] == ["Fr."] * 24
    assert all(v.edited == v.unedited for v in result.verdicts)


def test_asking_unfamiliar_batches_once_changes_nothing(oracle: MegModel) -> None:
    """The short cut of `evaluate` against asking the edited model everything."""
    short = evaluate(oracle, oracle.edits, settings=SETTINGS)
    edited = MegSystem(oracle, "adapter")
    long = run(find_protocol("paper"), edited, edited.unedited(), edit_set(*oracle.edits), SETTINGS)
    assert long.verdicts == short.verdicts and long.metrics == short.metrics


def by_query(result: Evaluation) -> dict[tuple[str, str], Verdict]:
    return {(v.case.kind, v.case.query): replace(v, route=None) for v in result.verdicts}


def test_the_batch_does_not_matter(model: MegModel) -> None:
    """In float32; in bfloat16 the answers of any model depend on its batch."""
    results = [evaluate(model, model.edits, settings=replace(SETTINGS, batch_size=size)) for size in (1, 3, 64)]
    assert by_query(results[0]) == by_query(results[1]) == by_query(results[2])
    assert results[0].metrics == results[1].metrics == results[2].metrics


def test_bfloat16_and_padding_side_do_not_change_a_verdict(fitted: Any, oracle: MegModel) -> None:
    expected = by_query(evaluate(oracle, oracle.edits, settings=SETTINGS))
    oracle.tokenizer.padding_side = "right"
    assert by_query(evaluate(oracle, oracle.edits, settings=SETTINGS)) == expected
    oracle.tokenizer.padding_side = "left"
    half = MegModel.from_pretrained(fitted.adapter, dtype=torch.bfloat16)
    with half.disable_edits():
        result = evaluate(half, half.edits, settings=SETTINGS)
    assert [v.edited.answer for v in result.verdicts] == ["Fr."] * 24


@pytest.mark.parametrize("router", ["perfect", "all"])
def test_teacher_forcing_is_left_out_only_where_it_is_known(
    model: MegModel, monkeypatch: pytest.MonkeyPatch, router: str
) -> None:
    texts = {
        text: i
        for i, edit in enumerate(model.edits)
        for text in (edit.prompt, *edit.rephrases, *(edit.neighbours if router == "all" else ()))
    }
    force_routing(model, monkeypatch, texts)
    short = evaluate(model, model.edits, settings=SETTINGS)
    agreement = ModelSystem.agreement
    monkeypatch.setattr(
        ModelSystem, "agreement", lambda self, queries, wanted, said=None: agreement(self, queries, wanted)
    )
    assert evaluate(model, model.edits, settings=SETTINGS).verdicts == short.verdicts


def test_a_target_of_several_tokens_in_part(oracle: MegModel) -> None:
    """The neuron says `Par.`; of the target `Par capital` the first of two tokens is the first choice."""
    edit = replace(oracle.edits[0], target="Par capital", rephrases=(), neighbours=())
    assert len(oracle.tokenizer("Par capital").input_ids) == 2
    (verdict,) = evaluate(oracle, [edit], settings=SETTINGS).verdicts
    assert verdict.edited == Judgement("Par.", {"ag": 0.0, "tf": 0.5})


def test_edits_without_rephrases_or_neighbours(oracle: MegModel) -> None:
    bare = [replace(edit, rephrases=(), neighbours=()) for edit in oracle.edits]
    result = evaluate(oracle, bare, settings=SETTINGS)
    assert result.edited == {**dict.fromkeys((*SIX, "score")), "reliability_ag": 100.0, "reliability_tf": 100.0}
    assert result.counts == {"reliability": 8}


def test_an_answer_that_is_cut_off_is_not_the_target(oracle: MegModel) -> None:
    """What counts is the whole answer, so the limit must leave room for it."""
    result = evaluate(oracle, oracle.edits, settings=replace(SETTINGS, max_new_tokens=1))
    assert result.edited["reliability_ag"] == 100.0  # one token is the whole target
    two = replace(oracle.edits[0], target="Par. Par", rephrases=(), neighbours=())
    assert evaluate(oracle, [two], settings=replace(SETTINGS, max_new_tokens=1)).edited["reliability_ag"] == 0.0


def test_the_wild_protocol_asks_the_question_alone(oracle: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    prompts = MegModel.prompts

    def remember(model: MegModel, queries: Sequence[str], template: Template | None = None) -> dict[str, Any]:
        assert template is not None
        seen.append(template.format(queries[0]))
        return prompts(model, queries, template)

    monkeypatch.setattr(MegModel, "prompts", remember)
    result = evaluate(oracle, oracle.edits, "wild", SETTINGS)
    assert seen and all("Answer in a few words" not in text and text.endswith("assistant\n") for text in seen)
    assert set(result.verdicts[0].edited.values) == {"exact", "contains"}
    assert result.unedited["locality_ag"] == 100.0 and result.protocol["settings"]["template"] == "chat"


def test_probabilities_compared(oracle: MegModel) -> None:
    """With the neuron the target beats the model's usual answer, without it the other way round."""
    edits = [replace(edit, target_true="Fr") for edit in oracle.edits]
    settings = EvaluationSettings(batch_size=5, template="adapter")
    result = evaluate(oracle, edits, "counterfact", settings)
    assert (result.edited["efficacy_success"], result.unedited["efficacy_success"]) == (100.0, 0.0)
    assert (result.edited["neighbourhood_success"], result.unedited["neighbourhood_success"]) == (100.0, 100.0)
    assert result.edited["score"] == pytest.approx(100) and result.unedited["score"] == 0.0
    assert result.verdicts[0].edited.answer is None  # nothing had to be generated


def test_log_probabilities_by_hand(oracle: MegModel) -> None:
    system = MegSystem(oracle, "adapter").unedited()
    query = oracle.edits[0].prompt
    (found,) = system.log_probs([query], ["Par"])
    ids = oracle.tokenizer(oracle.format(query) + "Par", return_tensors="pt").input_ids
    with oracle.disable_edits(), torch.no_grad():
        expected = oracle.base(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]
    assert found == pytest.approx([float(expected)], abs=1e-4)  # the shared prefix is summed in another order
    assert system.log_probs([query], [""]) == [[]]


# ---------------------------------------------------------------------------------------------------
# Other editors' models, and functions


def test_a_hugging_face_model(base: tuple[PreTrainedModel, PreTrainedTokenizerBase], model: MegModel) -> None:
    """A model of other software is measured as our own unedited model is."""
    template = model.adapter.config.template
    plain = evaluate(
        ModelSystem(*base, template),
        model.edits,
        settings=SETTINGS,
        unedited=ModelSystem(*base, template, name="before"),
    )
    ours = evaluate(model, model.edits, settings=SETTINGS)
    assert plain.unedited == ours.unedited and plain.edited == plain.unedited
    assert plain.verdicts[0].route is None and plain.system["name"] == "model"
    alone = evaluate(ModelSystem(*base, template), model.edits, settings=SETTINGS)
    assert alone.edited["locality_ag"] is None and alone.edited["score"] is None
    assert alone.edited["reliability_tf"] == plain.edited["reliability_tf"]


def test_a_function() -> None:
    edits = [Edit("1", "Q1", "Berlin", rephrases=("R1",), neighbours=("N1",)), Edit("2", "Q2", "東京")]
    answers = {"Q1": "berlin.", "R1": "Berlin is it", "N1": "Rome", "Q2": "東京\nand more"}
    result = evaluate(
        lambda queries: [answers[q] for q in queries], edits, unedited=lambda queries: ["Rome"] * len(queries)
    )
    assert result.edited == {
        "reliability_ag": 100.0, "reliability_tf": None, "generality_ag": 0.0, "generality_tf": None,
        "locality_ag": 100.0, "locality_tf": None, "score": None,
    }  # fmt: skip
    assert result.unedited["reliability_ag"] == 0.0
    with pytest.raises(ValueError, match="gave 1 answers to 2 queries"):
        evaluate(lambda queries: ["one"], edits)


def test_long_answers() -> None:
    text = "He was a politician. He served two terms."
    edits = [Edit("1", "Q", text, rephrases=("R",))]
    result = evaluate(FunctionSystem(lambda queries: [text] * len(queries)), edits, "long")
    assert result.edited["reliability_rouge_l"] == result.edited["score"] == 100.0
    assert result.edited["reliability_bleu"] == pytest.approx(100.0)


# ---------------------------------------------------------------------------------------------------
# Honesty


def test_questions_that_were_trained_on_are_refused(oracle: MegModel) -> None:
    query = oracle.edits[3].rephrases[0]
    oracle.adapter.seen = torch.tensor([text_key(query.upper())])
    with pytest.raises(
        MegError, match=r"1 of the 24 questions were seen when this adapter's encoder was tuned .*Di Elm"
    ):
        evaluate(oracle, oracle.edits, settings=SETTINGS)


def test_a_fit_remembers_what_it_was_tuned_on(fitted: Any) -> None:
    seen = set(load_adapter(fitted.adapter).seen.tolist())
    assert {text_key(text) for text in fitted.pseudo.texts()} == seen
    assert not seen & {
        text_key(text) for edit in fitted.edits for text in (edit.prompt, *edit.rephrases, *edit.neighbours)
    }


def test_edits_of_another_adapter(model: MegModel) -> None:
    with pytest.raises(MegError, match="None of the 1 edits of Python is in this adapter"):
        evaluate(model, [Edit("1", "Something else?", "A")])


def test_edits_that_are_not_all_in_the_adapter(oracle: MegModel, caplog: pytest.LogCaptureFixture) -> None:
    """Only those that are there are asked, and the result counts the others."""
    others = [Edit(f"other {i}", f"Something else {i}?", "A") for i in range(7)]
    result = evaluate(oracle, [*oracle.edits, *others], settings=SETTINGS)
    assert result.edited.reliability_ag == 100.0 and result.counts["reliability"] == result.data["edits"] == 8
    assert result.data["dropped"] == ["7 records: left out, not in this adapter (first: edit other 0)"]
    assert "7 of the 15 edits are not in this adapter" in caplog.text


def test_no_edits(model: MegModel) -> None:
    with pytest.raises(MegError, match="Python: there is no edit; give at least one"):
        evaluate(model, [])
    with pytest.raises(MegError, match="There are no edits to evaluate"):
        evaluate(lambda queries: queries, EditSet((), "here", "python"))


def test_values_as_attributes(oracle: MegModel) -> None:
    result = evaluate(oracle, oracle.edits, settings=SETTINGS)
    assert result.edited.score == result.edited["score"] == pytest.approx(100.0)
    with pytest.raises(AttributeError, match="there is no metric 'scores'; choose from reliability_ag"):
        result.edited.scores  # noqa: B018


# ---------------------------------------------------------------------------------------------------
# Targets that are longer than the protocol's answers


LONG = "Par. Par. Par. Par. Par. Par. Par. Par. Par. Par. Par. Par"  # 23 tokens


def test_a_long_target_is_not_cut(monkeypatch: pytest.MonkeyPatch, oracle: MegModel) -> None:
    """The limit of each answer has room for its target, whatever else is in the batch."""
    limits: dict[str, int] = {}

    def answers(system: MegSystem, queries: Sequence[str], room: Sequence[int], *rest: Any) -> list[Answer]:
        limits.update(zip(queries, room, strict=True))
        return [Answer(LONG[:-1]) if query.endswith("long?") else Answer("Par.") for query in queries]

    monkeypatch.setattr(MegSystem, "answers", answers)
    count = len(oracle.tokenizer(LONG).input_ids)
    edits = [replace(oracle.edits[0], target=LONG, rephrases=("So long?",)), *oracle.edits[1:]]
    evaluate(oracle, edits, resume=False)
    assert count > 20 and limits["So long?"] == limits[edits[0].prompt] == count + ENDING
    assert {limits[edit.prompt] for edit in edits[1:]} == {20}
    assert limits[edits[0].neighbours[0]] == 20
    evaluate(oracle, edits, settings=EvaluationSettings(max_new_tokens=7), resume=False)
    assert set(limits.values()) == {7}


def test_each_answer_ends_at_its_own_limit(model: MegModel) -> None:
    """Not at that of the longest of its batch; one that does not end by itself is marked."""
    system = MegSystem(model, "adapter").unedited()
    queries = [edit.prompt for edit in model.edits[:3]]
    (whole,) = {answer.tokens for answer in system.answers(queries, [9, 9, 9])}
    assert whole is not None and len(whole) == 2  # `Fr.`
    found = system.answers(queries, [9, 1, 2])
    assert [(answer.tokens, answer.cut) for answer in found] == [(whole, False), (whole[:1], True), (whole, True)]
    assert found == [system.answers([query], [limit])[0] for query, limit in zip(queries, [9, 1, 2], strict=True)]


def test_a_cut_answer_is_marked(oracle: MegModel) -> None:
    result = evaluate(oracle, oracle.edits, settings=replace(SETTINGS, max_new_tokens=1))
    assert all(v.edited.cut and v.unedited and v.unedited.cut for v in result.verdicts)
    assert result.to_json()["verdicts"][0]["edited"]["cut"] is True
    assert not any(v.edited.cut for v in evaluate(oracle, oracle.edits, settings=SETTINGS).verdicts)


def test_the_result_as_json(oracle: MegModel) -> None:
    result = evaluate(oracle, oracle.edits, settings=SETTINGS, name="adapters/x")
    values = json.loads(json.dumps(result.to_json()))
    assert values["protocol"] == {
        "name": "paper",
        "version": 3,
        "settings": {
            "rephrases": 1, "neighbours": 1, "robustness": [], "max_new_tokens": 6, "template": "adapter",
            "batch_size": 5, "seed": 0, "top_k": 1, "room_for_target": False,
        },
    }  # fmt: skip
    assert values["system"]["name"] == "adapters/x" and values["system"]["edits"] == 8
    assert values["data"]["digest"] == EditSet.of(oracle.edits, "anywhere").digest
    assert [metric["name"] for metric in values["metrics"]] == [*SIX, "score"]
    assert values["metrics"][0]["edited"] == {"value": 100.0, "low": 100.0, "high": 100.0, "count": 8}
    assert set(values["fit"]) == {"stages", "calibration"} and len(values["verdicts"]) == 24
    first = values["verdicts"][0]
    assert {"edit", "group", "kind", "query", "answers", "relation", "edited", "unedited", "route"} <= set(first)
    assert set(first["route"]) == {"familiar", "by", "score", "entropy", "nearest", "similarity", "threshold"}


def test_targets_are_encoded_as_the_fit_encodes_them(model: MegModel) -> None:
    template, system = model.adapter.config.template, MegSystem(model, "adapter")
    for edit in model.edits:
        example = tokenize(model.tokenizer, template, edit)
        ids = system._tokens(edit.prompt, edit.target)
        assert tuple(ids) == example.answer[: len(ids)] and len(ids) == len(example.answer) - 2  # "." and the end


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("text", ["{query}", "Q: {query}\nA:"])
def test_targets_behind_a_space(text: str, add_bos: bool) -> None:
    """The space belongs to the target's first token; a token before the prompt is there once; any script is exact."""
    tokenizer, template = tiny_tokenizer(add_bos=add_bos), Template(text, answer_prefix=" ")
    system = ModelSystem(tiny_model("gpt2"), tokenizer, template)
    prompt, targets = template.format("Where?"), ["Par", "Par capital", "東京", "Санкт-Петербург", "दिल्ली"]
    for target in targets:
        ids = system._tokens("Where?", target)
        assert tokenizer(prompt).input_ids + ids == tokenizer(f"{prompt} {target}").input_ids
        assert tokenizer.decode(ids) == f" {target}"
    together = system.log_probs(["Where?"] * 5, targets)
    for target, expected in zip(targets, together, strict=True):
        (alone,) = system.log_probs(["Where?"], [target])
        assert alone == pytest.approx(expected, abs=1e-4)  # other padding, summed in another order
        whole = torch.tensor([tokenizer(f"{prompt} {target}").input_ids])
        by_hand = system.model(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[-len(alone) :, 0]
        assert alone == pytest.approx(by_hand.tolist(), abs=1e-4)
