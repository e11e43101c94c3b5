"""Every method: it edits a tiny model, is asked as any system, and gives the base model back bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megedit.baselines import ABLATIONS, METHODS, method_named
from megedit.baselines.alphaedit import AlphaEditSettings
from megedit.baselines.bench import digest
from megedit.baselines.ft import FineTuning, FineTuningSettings
from megedit.baselines.grace import GraceSettings
from megedit.baselines.locate import second_moment, states_at
from megedit.baselines.lora import LoraSettings
from megedit.baselines.malmen import MalmenSettings
from megedit.baselines.meg import Meg
from megedit.baselines.memit import MemitSettings
from megedit.baselines.method import (
    Base,
    Method,
    Upper,
    Weights,
    answer_logits,
    answer_losses,
    batch_of,
    batches,
    inputs_of,
    output_matrix,
    outputs_of,
)
from megedit.baselines.pmet import PmetSettings
from megedit.baselines.scen import ScenSettings
from megedit.baselines.ultraedit import UltraEditSettings
from megedit.baselines.wise import WiseSettings
from megedit.errors import MegError
from megedit.lm.batches import IGNORED
from tests.conftest import Fitted
from tests.tiny import FAMILIES, tiny_model

# What lets a method learn eight facts on a tiny model in a moment
LOCATE: dict[str, Any] = {"first": 0.0, "last": 0.4, "tokens": 2000, "lr": 0.05, "clamp": 4.0, "decay": 0.0}
QUICK: dict[str, Any] = {
    "ft": FineTuningSettings(epochs=150, lr=5e-3),
    "lora": LoraSettings(epochs=60, lr=2e-2),
    "ultraedit": UltraEditSettings(first=0.0, last=1.0, turn=4, eta=1e-3),
    "malmen": MalmenSettings(first=0.0, rank=16, eta=1e-3, meta_steps=20, meta_edits=8, meta_lr=1e-3),
    "grace": GraceSettings(lr=0.1, radius=1e-3),
    "wise": WiseSettings(epochs=60, lr=2e-2, unrelated=16),
    "scen": ScenSettings(unrelated=16, index_steps=800),
    "memit": MemitSettings(**LOCATE, moment_weight=1.0),
    "pmet": PmetSettings(**LOCATE, moment_weight=1.0),
    "alphaedit": AlphaEditSettings(**LOCATE, threshold=1e9, ridge=1.0),
}
LIMITS = [8] * 8


def quick(name: str, base: Base, fitted: Fitted) -> Method:
    """A method with settings for a tiny model."""
    kind = method_named(name)
    settings = kind.changed(fitted.settings) if issubclass(kind, Meg) else QUICK.get(name)
    return kind(base, settings, seed=0)


def said(method: Method, fitted: Fitted) -> list[str]:
    """Its answers to the edits' own questions."""
    return [answer.text for answer in method.system().answers([edit.prompt for edit in fitted.edits], LIMITS)]


def likely(method: Method, fitted: Fitted) -> list[list[float]] | None:
    """The log-probabilities of the targets behind the edits' own questions."""
    edits = fitted.edits
    return method.system().log_probs([edit.prompt for edit in edits], [edit.target for edit in edits])


@pytest.mark.parametrize("name", [*METHODS, *ABLATIONS])
def test_it_edits_and_gives_the_model_back(name: str, tiny: Base, fitted: Fitted) -> None:
    method = quick(name, tiny, fitted)
    before, weights = likely(method, fitted), digest(tiny)
    assert method.stored_bytes == 0
    done: list[int] = []
    queries, targets = [edit.prompt for edit in fitted.edits], [edit.target for edit in fitted.edits]
    method.edit(list(fitted.edits), done.append)
    try:
        assert sum(done) == len(fitted.edits)
        assert likely(method, fitted) != before or said(method, fitted) == targets
        assert method.stored_bytes > 0
        shares = method.system().agreement(queries, targets)
        assert shares is not None and all(0 <= share <= 1 for share in shares)
    finally:
        method.restore()
    assert likely(method, fitted) == before and digest(tiny) == weights and method.stored_bytes == 0
    method.restore()  # twice does no harm


@pytest.mark.parametrize("name", ["meg", "meg-collected", "semantic-cache"])
def test_it_answers_the_edits(name: str, tiny: Base, fitted: Fitted) -> None:
    method = quick(name, tiny, fitted)
    method.edit(list(fitted.edits))
    try:
        right = [
            answer.strip(" .") == edit.target for answer, edit in zip(said(method, fitted), fitted.edits, strict=True)
        ]
    finally:
        method.restore()
    assert all(right)


@pytest.mark.parametrize(
    "name", ["ft", "locft-bf", "lora", "ultraedit", "malmen", "grace", "wise", "scen", "memit", "pmet", "alphaedit"]
)
def test_it_makes_the_targets_more_likely(name: str, tiny: Base, fitted: Fitted) -> None:
    """Edits without a subject are written at the end of the prompt, on which a tiny model's answer hangs."""
    method = quick(name, tiny, fitted)
    before = likely(method, fitted)
    method.edit([replace(edit, subject=None) for edit in fitted.edits])
    try:
        after = likely(method, fitted)
    finally:
        method.restore()
    assert before is not None and after is not None
    assert sum(map(sum, after)) > sum(map(sum, before)) + 1


def test_an_unknown_method() -> None:
    with pytest.raises(MegError, match=r"no method 'rome'; choose from meg, ft"):
        method_named("rome")


def test_a_training_that_diverges_says_so(tiny: Base, fitted: Fitted) -> None:
    method = FineTuning(tiny, FineTuningSettings(lr=math.inf))
    with pytest.raises(MegError, match="diverged"):
        method.edit(list(fitted.edits))
    method.restore()


@pytest.mark.parametrize("family", [family for family in FAMILIES if "moe" not in family and family != "mixtral"])
def test_the_output_matrix_of_every_family(family: str) -> None:
    model = tiny_model(family)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layer = max(layers, key=len)[0]
    _, matrix = output_matrix(layer)
    assert outputs_of(matrix) == model.config.get_text_config().hidden_size < inputs_of(matrix)


def test_batches_hold_every_example_once(tiny: Base, fitted: Fitted) -> None:
    examples = tiny.examples(list(fitted.edits))
    found = list(batches(tiny, examples, 3))
    assert [batch.indices for batch in found] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    batch = found[0]
    for row, index in enumerate(batch.indices):
        tokens = batch.ids[row][batch.mask[row] == 1].tolist()
        assert tokens == [*examples[index].prompt, *examples[index].answer]
        assert batch.labels[row][batch.labels[row] != IGNORED].tolist() == list(examples[index].answer)
    assert list(batches(tiny, [], 3)) == []


def test_losses_are_those_of_each_row_alone(tiny: Base, fitted: Fitted) -> None:
    """Neither padding nor the rows beside it change a row's loss."""
    examples = tiny.examples(list(fitted.edits))
    together = batch_of(tiny, examples, range(8))
    losses = answer_losses(answer_logits(tiny.model, together), together.labels)  # (rows,)
    for i in range(8):
        alone = batch_of(tiny, examples, [i])
        assert answer_losses(answer_logits(tiny.model, alone), alone.labels).item() == pytest.approx(
            losses[i].item(), abs=1e-4
        )


def test_second_moments_are_those_of_each_text_alone(
    tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of texts of unequal length, and of no more tokens than were asked for."""
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))
    texts = ["Ada led it.", "The gateway uses port 8443 since May.", "It rained on Monday, and nobody came."]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    counts = [len(tiny.tokenizer(text).input_ids) for text in texts]
    settings = MemitSettings(text=str(tmp_path / "texts.txt"), tokens=sum(counts) - 2, batch_size=2)
    _, matrix = output_matrix(tiny.layers[1])
    keys = []
    for text, cut in zip(texts, (0, 0, 2), strict=True):
        ids = tiny.tokenizer(text, return_tensors="pt").input_ids
        keys.append(states_at(tiny, matrix, {"input_ids": ids[:, : ids.shape[1] - cut]}, inputs=True)[0])
    expected = torch.cat(keys).float()  # (tokens, inputs)
    assert torch.allclose(second_moment(tiny, 1, settings), expected.T @ expected / len(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_upper_layers_alone_give_what_the_model_does(layer: int, tiny: Base, fitted: Fitted) -> None:
    """In other batches than those in which what is below was computed."""
    examples = tiny.examples(list(fitted.edits))
    upper = Upper(tiny, examples, layer, 3)
    for indices in ([7, 0, 4], range(8)):
        batch = batch_of(tiny, examples, indices)
        found, expected = upper.answer_logits(batch), answer_logits(tiny.model, batch)
        assert torch.allclose(answer_losses(found, batch.labels), answer_losses(expected, batch.labels), atol=1e-4)


def test_weights_are_given_back(tiny: Base) -> None:
    _, matrix = output_matrix(tiny.layers[0])
    weights, before = Weights([matrix.weight]), matrix.weight.clone()
    with torch.no_grad():
        matrix.weight.add_(1.0)
    assert (matrix.weight - before).mean().item() == pytest.approx(1.0, abs=1e-3)
    weights.restore()
    assert torch.equal(matrix.weight, before) and weights.bytes == matrix.weight.numel() * matrix.weight.element_size()
