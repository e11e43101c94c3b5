"""SCEN's experts and indexing neurons by hand-made numbers, and that only a prompt that is indexed gets an expert."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from megedit.baselines.method import Base
from megedit.baselines.prompts import PromptSystem
from megedit.baselines.scen import (
    ExpertPlace,
    Experts,
    Scen,
    ScenSettings,
    expert_output,
    index,
    index_losses,
    read,
    trained,
)
from megedit.lm.backbone import Backbone
from megedit.lm.batches import prepare
from tests.conftest import Fitted

OTHERS = ["What is the capital of Chile?", "Name a colour.", "How many sides has a cube?"]


def two_experts(threshold: float = 0.65, bias: float = 0.0) -> Experts:
    """Neurons along the two axes, and experts that answer 1 + 1 along the first axis, or 3 along the second."""
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    values = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 9.0]]])
    neurons = torch.tensor([[2.0, 0.0, bias], [0.0, 2.0, bias]])
    return Experts(keys, values, neurons, torch.zeros(2), nn.functional.relu, threshold)


def test_the_most_active_neuron_chooses() -> None:
    # sigmoid of 2 cos: 0.88 along an axis, 0.80 on the diagonal, 0.5 and less elsewhere
    states = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, 0.0], [-1.0, -1.0], [0.8, 0.6], [0.6, 0.8]])
    assert two_experts().choose(states).tolist() == [0, 1, -1, -1, 0, 1]
    # sigmoid(1.6) = 0.83
    assert two_experts(0.85).choose(states).tolist() == [0, 1, -1, -1, -1, -1]
    # sigmoid(1) = 0.73, sigmoid(0.6) = 0.65 less a little
    assert two_experts(bias=-1.0).choose(states).tolist() == [0, 1, -1, -1, -1, -1]
    assert two_experts(1.0).choose(states).tolist() == [-1] * 6


def test_each_row_gets_its_own_expert() -> None:
    states = torch.tensor([[[4.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [0.0, 4.0]]])
    added = two_experts().output(states, torch.tensor([0, 1]))
    assert added.tolist() == [[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]]


def test_states_count_by_their_direction() -> None:
    states, centre = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]), torch.tensor([0.6, 0.0])
    assert read(states, centre).tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [-1.0, 0.0, 1.0]]


def test_the_loss_of_a_neuron() -> None:
    active = torch.tensor([[0.9, 0.1], [0.7, 0.6], [0.2, 0.5]])  # two neurons, their states, and another one
    losses = index_losses(active, 0.3)
    # neuron 0 at 0.9: of the others, 0.7 and 0.2, one is less than 0.3 below
    first = math.exp(-0.9) + (math.exp(0.7) + math.exp(0.2)) / 2 + (0.7 - 0.9 + 0.3)
    # neuron 1 at 0.6: of 0.1 and 0.5, one is
    second = math.exp(-0.6) + (math.exp(0.1) + math.exp(0.5)) / 2 + (0.5 - 0.6 + 0.3)
    assert losses.tolist() == pytest.approx([first, second])
    assert index_losses(torch.tensor([[0.9]]), 0.3).tolist() == pytest.approx([math.exp(-0.9)])


def drawn_states(rows: int, seed: int) -> Tensor:
    """Made-up states as neurons read them: float32 (rows, 33)."""
    return read(torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)), torch.zeros(32))


def test_trained_neurons_know_their_own_states_alone() -> None:
    own, unrelated, settings, drawn = drawn_states(20, 0), drawn_states(50, 1), ScenSettings(), torch.Generator()
    active = torch.sigmoid(torch.cat([own, unrelated]) @ index(own, unrelated, settings, drawn).T)  # (states, neurons)
    assert active.argmax(1)[:20].tolist() == list(range(20))
    assert active.diagonal().min() > settings.threshold > active[20:].max()
    assert index(own[:0], unrelated, settings, drawn).shape == (0, 33)


def test_neurons_are_trained_alike_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drawn_states(6, 0)

    def found() -> Tensor:
        return index(own, own[:0], ScenSettings(index_steps=20), torch.Generator())

    together = found()
    monkeypatch.setattr("megedit.baselines.scen.NEURONS", 2)
    assert torch.allclose(found(), together, atol=1e-3)


@pytest.fixture
def backbone(tiny: Base) -> Backbone:
    return Backbone(tiny.model, len(tiny.layers) - 1)


def test_experts_are_trained_alike_alone_and_together(tiny: Base, backbone: Backbone, fitted: Fitted) -> None:
    examples = tiny.examples(list(fitted.edits))
    keys = torch.randn(8, 2, tiny.hidden_size, generator=torch.Generator().manual_seed(0))
    settings = ScenSettings(steps=5)

    def values(rows: list[int]) -> Tensor:
        batch = prepare(backbone, examples, rows, "answer", tiny.tokenizer.pad_token_id)
        return trained(backbone, batch, keys[rows], settings)[1]

    together, alone = values([0, 1, 2]), values([1])
    assert together.abs().max() > 0.1
    # Adam's first step is the sign of the gradient, so that a rounding error may turn numbers near 0
    assert (together[1] - alone[0]).abs().median() < 1e-4


def test_an_expert_without_values_adds_nothing(tiny: Base) -> None:
    keys = torch.randn(1, 2, tiny.hidden_size)
    states = torch.randn(1, 3, tiny.hidden_size)
    assert not expert_output(states, keys, torch.zeros_like(keys), nn.functional.silu).any()


@contextmanager
def indexed(base: Base, backbone: Backbone, neuron: Tensor, threshold: float = 0.65) -> Iterator[PromptSystem]:
    """A model with one expert, that of a neuron (d,)."""
    drawn = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 2, base.hidden_size, generator=drawn) for _ in range(2))
    neurons = nn.functional.pad(neuron, (0, 1))[None]  # (1, d + 1)
    experts = Experts(keys, 1e3 * values, neurons, torch.zeros(base.hidden_size), nn.functional.silu, threshold)
    place = ExpertPlace(experts)
    hooks = place.hooks(backbone)
    try:
        yield PromptSystem(base, "scen", place)
    finally:
        for hook in hooks:
            hook.remove()


def end_states(base: Base, backbone: Backbone, queries: list[str]) -> Tensor:
    """The directions of the FFN's input at the end of prompts: float32 (rows, d)."""
    prompts = base.tokenizer([base.template.format(query) for query in queries], return_tensors="pt", padding=True)
    positions = (prompts.attention_mask.cumsum(1) - 1).clamp(min=0)
    states = backbone.prefix({**prompts, "position_ids": positions}).ffn_input[:, -1]  # (rows, d)
    return nn.functional.normalize(states.float(), dim=-1)


def test_only_the_indexed_prompt_changes(tiny: Base, backbone: Backbone) -> None:
    """The others of its batch are answered bit for bit as before."""
    before = PromptSystem(tiny, "plain", None).log_probs(OTHERS, ["Par"] * 3)
    states = end_states(tiny, backbone, OTHERS)
    # 0 at the other two, so that their activation is 0.5
    neuron = states[1] - torch.linalg.lstsq(states[[0, 2]].T, states[1]).solution @ states[[0, 2]]  # (d,)
    with indexed(tiny, backbone, 10 * neuron / (neuron @ states[1])) as system:
        after = system.log_probs(OTHERS, ["Par"] * 3)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_an_expert_stays_for_the_answer(tiny: Base, backbone: Backbone) -> None:
    """It is used alike in one pass over an answer and token by token, and not at the tokens before the prompt's end."""
    state = end_states(tiny, backbone, OTHERS[:1])[0]
    with indexed(tiny, backbone, 10 * state) as system:
        said = system.answers(OTHERS[:1], [6])
        assert system.agreement(OTHERS[:1], said) == [1.0]
        assert said != PromptSystem(tiny, "plain", None).answers(OTHERS[:1], [6])


def test_an_unfamiliar_prompt_is_answered_bit_for_bit_as_before(tiny: Base, fitted: Fitted) -> None:
    before = PromptSystem(tiny, "plain", None).log_probs(OTHERS, ["Par"] * 3)
    method = Scen(tiny, ScenSettings(threshold=1.0, steps=2, unrelated=4))
    method.edit(list(fitted.edits))
    try:
        assert method.system().log_probs(OTHERS, ["Par"] * 3) == before
    finally:
        method.restore()


def test_nothing_to_edit(tiny: Base) -> None:
    method = Scen(tiny)
    method.edit([])
    assert method.stored_bytes == 0
    method.restore()


def test_without_unrelated_texts(tiny: Base, fitted: Fitted) -> None:
    method = Scen(tiny, ScenSettings(unrelated=0, steps=2))
    method.edit(list(fitted.edits)[:1])
    try:
        assert method.experts is not None and len(method.experts.neurons) == 1
    finally:
        method.restore()
