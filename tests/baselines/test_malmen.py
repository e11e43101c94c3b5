"""MALMEN: the ridge solution, gradients in two parts that are those in one, a start that changes nothing, its facts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from megedit.baselines.malmen import (
    HyperNetwork,
    Lessons,
    Malmen,
    MalmenSettings,
    ShapeNetwork,
    gradients_at,
    ridge_shift,
)
from megedit.baselines.method import Base
from megedit.errors import MegError
from tests.conftest import Fitted

INPUTS, OUTPUTS = 6, 3
SETTINGS = MalmenSettings(rank=4, eta=0.1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps() -> list[nn.Module]:
    """Two linear maps of one shape, and GPT-2's kind of another."""
    found: list[nn.Module] = [nn.Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS), Conv1D(OUTPUTS, INPUTS + 1)]
    for i, module in enumerate(found):
        module.requires_grad_(False)
        module.get_parameter("bias").zero_()
        weight = module.get_parameter("weight")
        weight.copy_(random(*weight.shape, seed=10 + i))
    return found


def features(tokens: int = 5) -> list[Tensor]:
    return [random(tokens, inputs + OUTPUTS, seed=i) for i, inputs in enumerate((INPUTS, INPUTS, INPUTS + 1))]


def network() -> HyperNetwork:
    """A hypernetwork that is not at its start."""
    made = HyperNetwork(maps(), SETTINGS, 0)
    made.observe(features())
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.1 * random(*parameter.shape, seed=20 + i))
    return made


@pytest.mark.parametrize("tokens", [2, 6, 40])
def test_the_shift_solves_its_normal_equations(tokens: int) -> None:
    """Whichever of the two systems is the smaller."""
    keys, differences = random(tokens, INPUTS), random(tokens, OUTPUTS, seed=1)
    shift = ridge_shift(keys, differences, torch.tensor(0.5))
    left = shift @ (keys.double().T @ keys.double() + 0.5 * torch.eye(INPUTS).double())
    assert torch.allclose(left, differences.double().T @ keys.double(), atol=1e-4)


def test_with_little_ridge_every_key_gets_its_difference() -> None:
    keys, differences = random(4, INPUTS), random(4, OUTPUTS, seed=1)
    shift = ridge_shift(keys, differences, torch.tensor(1e-9))
    assert torch.allclose(keys.double() @ shift.T, differences.double(), atol=1e-4)


@pytest.mark.parametrize("tokens", [5, 20])
def test_gradients_in_two_parts_are_those_in_one(tokens: int) -> None:
    """Backward through the shifted maps first, batch by batch, then through ridge solution and hypernetwork."""
    inputs = [random(8, inputs, seed=30 + i) for i, inputs in enumerate((INPUTS, INPUTS, INPUTS + 1))]
    whole, parts, modules = network(), network(), maps()
    matrices = [module.get_parameter("weight").clone() for module in modules]
    # in one
    shifts = whole(features(tokens))
    shifted = [matrix + shift for matrix, shift in zip(matrices[:2], shifts[:2], strict=True)]
    outputs = [F.linear(x.double(), matrix) for x, matrix in zip(inputs, shifted, strict=False)]
    outputs.append(inputs[2].double() @ (matrices[2] + shifts[2].T))
    expected = torch.stack(outputs).tanh().square().sum()
    expected.backward()

    # in two
    def loss(rows: slice) -> Tensor:
        outputs = [module(x[rows]) for x, module in zip(inputs, modules, strict=True)]
        return torch.stack(outputs).tanh().square().sum()

    shifts = parts(features(tokens))
    total, gradients = gradients_at(modules, shifts, [lambda: loss(slice(0, 5)), lambda: loss(slice(5, 8))])
    torch.autograd.backward(shifts, [gradient.double() for gradient in gradients])
    assert total == pytest.approx(expected.item(), rel=1e-4)
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None and one.grad.any()
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-4)
    # and the maps are as before
    for module, matrix in zip(modules, matrices, strict=True):
        weight = module.get_parameter("weight")
        assert torch.equal(weight, matrix) and not weight.requires_grad and weight.grad is None


def test_at_its_start_the_hypernetwork_only_normalises() -> None:
    made, rows = HyperNetwork(maps(), SETTINGS, 0), features()
    made.observe(rows)
    first, second = made.networks
    assert isinstance(first, ShapeNetwork) and isinstance(second, ShapeNetwork)
    both = torch.cat(rows[:2])
    assert torch.allclose(first.transformed(rows[1], 1), (rows[1] - both.mean(0)) / both.std(0), atol=1e-4)
    assert torch.allclose(second.transformed(rows[2], 0), (rows[2] - rows[2].mean(0)) / rows[2].std(0), atol=1e-4)
    # d = -eta (u . u') v', and the ridge is 1
    changed = (rows[2] - rows[2].mean(0)) / rows[2].std(0)
    keys = rows[2][:, : INPUTS + 1]
    agreement = (keys * changed[:, : INPUTS + 1]).sum(1, keepdim=True)
    expected = ridge_shift(keys, -0.1 * agreement * changed[:, INPUTS + 1 :], torch.tensor(1.0))
    assert torch.allclose(made(rows)[2], expected, atol=1e-4)


def test_at_its_start_every_block_can_learn() -> None:
    made, rows = HyperNetwork(maps(), SETTINGS, 0), features()
    made.observe(rows)
    torch.stack([shift.square().sum() for shift in made(rows)]).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in made.named_parameters()
        if not name.endswith(("down", "scale"))  # these stand before and behind `up`, which is 0
    )


def test_lessons_have_the_targets_of_the_edits_and_none_of_their_queries(tiny: Base, fitted: Fitted) -> None:
    edits = [replace(edit, relation="language" if i < 2 else None) for i, edit in enumerate(fitted.edits)]
    lessons = Lessons(tiny, fitted.pseudo, edits, 0)
    lesson = lessons.draw(30)
    assert len(lesson.edits) == len(lesson.asked) == len(lesson.others) == 30
    told = {tiny.tokenizer.decode(list(example.prompt)): example.answer for example in (*lesson.edits, *lesson.asked)}
    assert len(told) == 60  # no wording twice
    few = {example.answer for example in tiny.examples(edits[:2])}
    assert {answer for text, answer in told.items() if "language" in text} == few
    assert {answer for text, answer in told.items() if "language" not in text} > few
    asked = {example.prompt for example in tiny.examples(edits)}
    assert not asked & {example.prompt for example in (*lesson.edits, *lesson.asked, *lesson.others)}
    assert all(len(example.answer) == 1 for example in lesson.others)


def test_nothing_to_train_on(tiny: Base, fitted: Fitted) -> None:
    with pytest.raises(MegError, match="the edits leave none"):
        Lessons(tiny, replace(fitted.pseudo, facts=()), list(fitted.edits), 0)


def test_no_edits(tiny: Base) -> None:
    method = Malmen(tiny)
    done: list[int] = []
    method.edit([], done.append)
    method.restore()
    assert sum(done) == 0


def test_refused_edits_are_left_out(tiny: Base, fitted: Fitted) -> None:
    edits = list(fitted.edits)
    method = Malmen(tiny, replace(SETTINGS, first=0.0, meta_steps=1, meta_edits=2))
    done: list[int] = []
    method.edit([replace(edits[0], target=" "), *edits[1:]], done.append)
    method.restore()
    assert sum(done) == len(edits)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_that_diverges_says_so(steps: int, tiny: Base, fitted: Fitted) -> None:
    method = Malmen(tiny, replace(SETTINGS, first=0.0, meta_steps=steps, meta_edits=2, meta_lr=math.inf))
    with pytest.raises(MegError, match="diverged"):
        method.edit(list(fitted.edits))
    method.restore()
