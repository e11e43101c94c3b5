"""The probe: what is measured in a layer, which layer is recommended, and what a fit makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.collect import CollectionSettings, collect
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.layers import (
    KNOWN_LAYERS,
    LayerResult,
    Wording,
    known_layer,
    other_wordings,
    probe,
    probe_model,
    recommended,
)
from megedit.lm.backbone import Backbone
from megedit.lm.batches import prepare, tokenize
from megedit.lm.loading import load_base
from megedit.lm.template import Template
from megedit.neuron import NeuronWeights
from megedit.optimise import answer_leads, answer_logits
from tests.cli.test_cli import output, problem
from tests.conftest import Fitted
from tests.tiny import tiny_model

SETTINGS = CollectionSettings(steps=40)
NOISE = ("It rained.", "It snowed.", "The sun shone.")
Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def base(fitted: Fitted) -> Base:
    return load_base(str(fitted.base), dtype=torch.float32)


def test_other_wordings(fitted: Fitted) -> None:
    edits = list(fitted.edits)[:2]
    given = other_wordings(edits, NOISE, 0, given=True)
    assert [(w.edit, w.text) for w in given] == [(i, text) for i, edit in enumerate(edits) for text in edit.rephrases]
    noisy = other_wordings(edits, NOISE, 0, given=False)
    assert len(noisy) == 4 and all(w.text.endswith(edits[w.edit].prompt) for w in noisy)
    assert len({w.text for w in noisy[:2]}) == 2 and noisy == other_wordings(edits, NOISE, 0, given=False)
    bare = [Edit("a", "Who?", "Me")]
    assert [w.text for w in other_wordings(bare, NOISE[:1], 0, given=True)] == ["It rained. Who?"]
    assert [w.text for w in other_wordings(bare, (), 0, given=True)] == ["Who?"]


def test_a_layer_by_hand(fitted: Fitted, base: Base) -> None:
    edits, template = list(fitted.edits)[:3], Template.for_tokenizer(base[1])
    wordings = [Wording(2, edits[2].rephrases[0]), Wording(0, edits[0].rephrases[1])]
    done: list[int] = []
    (result,) = probe(*base, template, edits, wordings, [2], SETTINGS, done.append)
    assert done == [1] and result.layer == 2 and result.seconds > 0
    backbone = Backbone(base[0], 2)
    examples = [tokenize(base[1], template, edit) for edit in edits]
    pad_id = base[1].pad_token_id
    found = collect(backbone, examples, SETTINGS, pad_id)
    assert result.reliability == round(100 * float((found.leads > 0).float().mean()), 2)
    assert result.norm == pytest.approx(float(found.weights[:, -32:].norm(dim=1).mean()), abs=1e-3)
    hits = 0
    for wording in wordings:
        example = tokenize(base[1], template, Edit("x", wording.text, edits[wording.edit].target))
        batch = prepare(backbone, [example], [0], "answer", pad_id)
        weights = NeuronWeights.from_vectors(found.weights[[wording.edit]], 32)
        hits += int(answer_leads(answer_logits(backbone, batch, weights), batch.labels)[0] > 0)
    assert result.generality == 50 * hits


def result(layer: int, reliability: float, generality: float) -> LayerResult:
    return LayerResult(layer, reliability, generality, norm=1.0, seconds=0.1)


def test_the_best_layer_is_recommended() -> None:
    layer, why = recommended([result(0, 100, 60), result(3, 100, 90), result(6, 100, 70)], wordings=100, depth=12)
    assert layer == 3 and why == "reliability 100.0, generality 90.0 on 100 other wordings"
    assert recommended([result(1, 0, 0)], 10, 2)[0] == 1


def test_of_equally_good_layers_the_usual_one() -> None:
    rows = [result(4, 100, 98), result(8, 100, 97), result(10, 99, 98), result(2, 90, 70)]
    layer, why = recommended(rows, wordings=64, depth=12)
    assert layer == 8 and why.endswith("; as good, but further from two thirds of the depth: 4, 10")


def test_a_layer_is_judged_with_those_beside_it() -> None:
    rows = [result(i, 100, generality) for i, generality in enumerate((96, 98, 99, 98, 90, 98.5, 90))]
    layer, why = recommended(rows, wordings=64, depth=9)
    assert layer == 2 and "generality 99.0" in why and why.endswith("further from two thirds of the depth: 1")


def test_known_models() -> None:
    model: Any = tiny_model("llama")
    assert known_layer(model) is None
    model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size = 576, 30, 49152
    assert known_layer(model) == KNOWN_LAYERS["llama", 576, 30, 49152]
    assert {layer for layer, _ in KNOWN_LAYERS.values()} >= {29, 9, 14}


def test_a_fit_chooses_a_layer(fitted: Fitted, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((fitted.adapter / "meg_config.json").read_text("utf-8"))
    assert config["settings"]["layer"] is None and config["layer"] in (1, 2, 3)
    assert "generality" in config["provenance"]["layer"] and "on 16 other wordings" in config["provenance"]["layer"]
    assert "Probing layers" in config["provenance"]["stages"]


def test_the_command(fitted: Fitted, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "".join(json.dumps({"prompt": e.prompt, "target": e.target}) + "\n" for e in fitted.edits), "utf-8"
    )
    out, figure = tmp_path / "probe.json", tmp_path / "probe.svg"
    arguments = ("probe", "--base", fitted.base, "--edits", facts, "--out", out, "--dtype", "float32", "--limit", "4")
    text = output(*arguments, "--stride", "2", "--figure", figure)
    values = json.loads(out.read_text("utf-8"))
    assert [row["layer"] for row in values["layers"]] == [0, 2] and values["edits"] == 4 and values["wordings"] == 8
    assert f"Layer {values['recommended']}: {values['why']}." in " ".join(text.split())
    drawn = figure.read_text("utf-8")
    assert drawn.startswith("<svg") and "reliability" in drawn and f"recommended: {values['recommended']}" in drawn
    assert "only an .svg file can be drawn" in problem(*arguments, "--figure", tmp_path / "probe.png")
    assert not list(tmp_path.glob(".probe*"))
    output(*arguments, "--layers", "3")
    assert [row["layer"] for row in json.loads(out.read_text("utf-8"))["layers"]] == [3]
    for wrong, message in (("4", "layers 0 to 3"), ("a", "numbers with commas")):
        assert message in problem(*arguments, "--layers", wrong)
    assert "does not exist" in problem(*arguments[:6], tmp_path / "no" / "probe.json")


def test_edits_that_cannot_be_answered_are_left_out(fitted: Fitted, tmp_path: Path) -> None:
    blank, good = replace(fitted.edits[0], target=" "), list(fitted.edits)[1:3]
    out = tmp_path / "probe.json"
    result = probe_model(str(fitted.base), [blank, *good], out, layers=[2, 2], dtype=torch.float32)
    assert (result["edits"], [row["layer"] for row in result["layers"]]) == (2, [2])
    assert json.loads(out.read_text("utf-8")) == json.loads(json.dumps(result))
    alone = probe_model(str(fitted.base), good, out, layers=[2], own_rephrases=True, dtype=torch.float32)
    assert alone["why"] == result["why"]
    with pytest.raises(MegError, match=f"Edit {blank.id} cannot be made: its target is blank"):
        probe_model(str(fitted.base), [blank], out)


def test_an_interrupted_probe_goes_on(fitted: Fitted, base: Base) -> None:
    edits, template = list(fitted.edits)[:2], Template.for_tokenizer(base[1])
    kept = {"layer-001": {"layer": 1, "reliability": 1.0, "generality": 2.0, "norm": 3.0, "seconds": 4.0}}

    def keep(name: str, compute: Any) -> Any:
        return kept.get(name) or compute()

    results = probe(*base, template, edits, [Wording(0, "Who?")], [1, 2], SETTINGS, keep=keep)
    assert results[0].norm == 3.0 and results[1].layer == 2


def test_a_layer_out_of_range(fitted: Fitted, base: Base) -> None:
    with pytest.raises(MegError, match="Layer 4 is out of range"):
        probe(*base, Template.for_tokenizer(base[1]), list(fitted.edits), [Wording(0, "Who?")], [4], SETTINGS)
