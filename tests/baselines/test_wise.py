"""WISE's margins and its merging, by numbers; and that only familiar prompts get the side memory, answers included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megedit.baselines.method import Base, inputs_of, output_matrix, outputs_of
from megedit.baselines.prompts import PromptSystem, hooked, unrelated_prompts
from megedit.baselines.wise import (
    SideMemory,
    Wise,
    WiseSettings,
    activation,
    margin_loss,
    own_tokens,
    shards,
    ties,
)
from megedit.lm.batches import Example
from tests.conftest import Fitted

OTHERS = ["What is the capital of Chile?", "Name a colour.", "How many sides has a cube?"]


def test_ties_trims_elects_and_averages() -> None:
    changes = torch.tensor([[4.0, -3.0, 2.0, 0.5], [2.0, 5.0, 0.1, -0.2]])
    # kept are the three largest of each: 4, -3, 2 and 2, 5, -0.2; the signs elected are +, +, +, -
    assert ties(changes, 0.75).tolist() == [3.0, 5.0, 2.0, pytest.approx(-0.2)]
    # kept are the two largest of each
    assert ties(changes, 0.5).tolist() == [3.0, 5.0, 0.0, 0.0]


def test_ties_leaves_disjoint_changes_whole() -> None:
    changes = torch.tensor([[[4.0, 0.0], [0.0, -1.0]], [[0.0, 2.0], [0.0, 0.0]]])
    assert ties(changes, 1.0).tolist() == [[4.0, 2.0], [0.0, -1.0]]


def test_ties_of_opposite_changes_is_nothing() -> None:
    assert ties(torch.tensor([[1.0], [-1.0]]), 1.0).tolist() == [0.0]


def test_the_margins() -> None:
    edits, others = torch.tensor([8.0, 3.0]), torch.tensor([1.0, 4.0])
    # over alpha = 2: 0, 2; under beta = 5: 0, 2; gamma = 3 less the leads 7, 4, 2, -1: 0, 0, 1, 4
    assert margin_loss(edits, others, 2.0, 5.0, 3.0).item() == pytest.approx(1.0 + 1.0 + 1.25)
    assert margin_loss(torch.tensor([9.0]), torch.tensor([1.0]), 2.0, 5.0, 3.0).item() == 0.0


def test_an_activation_is_a_mean_over_own_tokens() -> None:
    added = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [0.0, 1.0]], [[9.0, 9.0], [9.0, 9.0], [0.0, 2.0]]])
    own = torch.tensor([[False, True, True], [False, False, True]])
    assert activation(added, own).tolist() == [3.0, 2.0]
    assert activation(added, torch.zeros_like(own)).tolist() == [0.0, 0.0]


def test_own_tokens_stand_behind_the_shared_ones() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert own_tokens(mask, 2).tolist() == [[False, False, False, True], [False, False, True, True]]


def test_a_change_of_nothing_has_a_gradient_of_nothing() -> None:
    added = torch.zeros(1, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(activation(added, torch.ones(1, 2, dtype=torch.bool)).sum(), [added])
    assert not gradient.any()


@pytest.mark.parametrize(("edits", "sizes"), [(5, [1, 2, 2]), (2, [1, 1]), (0, [])])
def test_shards_hold_every_edit_once(edits: int, sizes: list[int]) -> None:
    examples = [Example((i,), (i,)) for i in range(edits)]
    parts = shards(examples, 3)
    assert [len(part) for part in parts] == sizes
    assert [example for part in parts for example in part] == examples


class Watched:
    """A side memory in a model, and the decisions that it took."""

    def __init__(self, base: Base, threshold: float, size: float = 0.05) -> None:
        _, self.matrix = output_matrix(base.layers[-1])
        shape = outputs_of(self.matrix), inputs_of(self.matrix)
        change = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * size
        self.memory = SideMemory(change.to(self.matrix.weight.dtype), threshold, 0)
        self.system = PromptSystem(base, "wise", self.memory)
        self.chosen: list[list[bool]] = []

    def hook(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        found = self.memory.hook(module, args, output)
        assert self.memory.chosen is not None
        self.chosen.append(self.memory.chosen.tolist())
        return found

    def log_probs(self, queries: Sequence[str], answer: str = "Par") -> list[list[float]]:
        self.chosen = []
        with hooked(self.matrix, self.hook):
            return self.system.log_probs(queries, [answer] * len(queries))


def activations(base: Base, queries: Sequence[str]) -> list[float]:
    """The activations of prompts with the side memory of `Watched`, each asked alone."""
    found: list[float] = []
    for query in queries:
        low, high = 0.0, 1e3
        for _ in range(40):
            middle = (low + high) / 2
            watched = Watched(base, middle)
            watched.log_probs([query])
            low, high = (middle, high) if watched.chosen[0][0] else (low, middle)
        found.append(low)
    return found


def test_an_unfamiliar_prompt_is_answered_bit_for_bit_as_before(tiny: Base) -> None:
    before = PromptSystem(tiny, "plain", None).log_probs(OTHERS, ["Par"] * 3)
    assert Watched(tiny, math.inf).log_probs(OTHERS) == before


def test_each_prompt_of_a_batch_is_decided_alone(tiny: Base) -> None:
    """A familiar one changes nothing in the others beside it."""
    before = PromptSystem(tiny, "plain", None).log_probs(OTHERS, ["Par"] * 3)
    lengths = activations(tiny, OTHERS)
    first, second = sorted(lengths)[-2:]
    watched = Watched(tiny, (first + second) / 2)
    after = watched.log_probs(OTHERS)
    assert watched.chosen == [[length == second for length in lengths]]
    assert [a == b for a, b in zip(after, before, strict=True)] == [length != second for length in lengths]


def test_the_decision_holds_for_the_answer(tiny: Base) -> None:
    """It is taken once, at the prompt, and neither changes with the tokens behind it nor outlives them."""
    watched = Watched(tiny, 0.0)
    with hooked(watched.matrix, watched.hook):
        watched.system.answers(OTHERS, [4] * 3)
    assert 1 < len(watched.chosen) <= 4 and watched.chosen == [[True] * 3] * len(watched.chosen)
    assert watched.memory.prompts is None and watched.memory.chosen is None


def test_decoding_says_what_the_logits_say(tiny: Base, fitted: Fitted) -> None:
    """The side memory is used alike in one pass over an answer and token by token."""
    method = Wise(tiny, WiseSettings(epochs=20, lr=2e-2, unrelated=8))
    method.edit(list(fitted.edits))
    try:
        queries = [edit.prompt for edit in fitted.edits]
        said = method.system().answers(queries, [6] * len(queries))
        assert method.system().agreement(queries, said) == [1.0] * len(queries)
    finally:
        method.restore()


def test_every_edit_is_familiar(tiny: Base, fitted: Fitted) -> None:
    method = Wise(tiny, WiseSettings(epochs=20, lr=2e-2, unrelated=8))
    method.edit(list(fitted.edits))
    try:
        memory, chosen = method.memory, []
        assert memory is not None
        # a merged weight is changed by one shard or by both, each with a fifth of the matrix
        assert 0.25 < (memory.change != 0).float().mean().item() < 0.45
        _, matrix = output_matrix(tiny.layers[round(0.87 * (len(tiny.layers) - 1))])
        with hooked(matrix, lambda *_: chosen.append(memory.chosen)):
            method.system().log_probs([edit.prompt for edit in fitted.edits], [edit.target for edit in fitted.edits])
        assert len(chosen) == 1 and chosen[0] is not None and chosen[0].all()
    finally:
        method.restore()


def test_nothing_to_edit(tiny: Base) -> None:
    method = Wise(tiny)
    method.edit([])
    assert method.stored_bytes == 0
    method.restore()


def test_unrelated_prompts_name_no_edit(tiny: Base, fitted: Fitted) -> None:
    edits = list(fitted.edits)
    prompts = unrelated_prompts(tiny, edits, 40, seed=0)
    assert len({tuple(prompt) for prompt in prompts}) == 40
    assert prompts == unrelated_prompts(tiny, edits, 40, seed=0) != unrelated_prompts(tiny, edits, 40, seed=1)
    texts = [tiny.tokenizer.decode(list(prompt)) for prompt in prompts]
    assert not any(edit.subject in text for edit in edits if edit.subject for text in texts)
