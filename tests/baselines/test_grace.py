"""GRACE's codebook, by hand-worked keys; and that the layer is changed at the end of the prompt alone."""

from __future__ import annotations

import torch

from megedit.baselines.grace import Codebook, Grace, GraceSettings
from megedit.baselines.method import Base
from tests.conftest import Fitted


def at(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


def test_a_key_answers_within_its_radius() -> None:
    codebook = Codebook(1.0)
    codebook.add(at(0.0, 0.0), at(9.0, 9.0), "Paris")
    rows = torch.stack([at(0.5, 0.0), at(1.5, 0.0)])
    assert codebook.replaced(rows, torch.zeros(2, 2)).tolist() == [[9.0, 9.0], [0.0, 0.0]]


def test_a_near_edit_of_the_same_target_widens_the_key() -> None:
    codebook = Codebook(1.0)
    codebook.add(at(0.0), at(1.0), "Paris")
    codebook.add(at(1.5), at(2.0), "Paris")
    assert len(codebook) == 1
    assert codebook.replaced(at(1.4)[None], torch.zeros(1, 1)).tolist() == [[1.0]]


def test_a_near_edit_of_another_target_splits_the_distance() -> None:
    codebook = Codebook(1.0)
    codebook.add(at(0.0), at(1.0), "Paris")
    codebook.add(at(1.0), at(2.0), "Rome")
    rows = torch.tensor([[0.4], [0.6], [-0.7], [1.6]])
    assert codebook.replaced(rows, torch.zeros(4, 1)).flatten().tolist() == [1.0, 2.0, 0.0, 0.0]


def test_a_far_edit_is_a_new_key() -> None:
    codebook = Codebook(1.0)
    codebook.add(at(0.0), at(1.0), "Paris")
    codebook.add(at(3.0), at(2.0), "Paris")
    assert len(codebook) == 2


def test_at_radius_0_nothing_else_changes(tiny: Base, fitted: Fitted) -> None:
    """Other queries get the base model's answers and logits, bit for bit."""
    others = ["What is the capital of Chile?", "Where was Ada Brooks born?", "Name a colour."]
    method = Grace(tiny, GraceSettings(radius=0.0, steps=3))
    before = method.system().log_probs(others, ["Par"] * 3)
    method.edit(list(fitted.edits))
    try:
        assert method.system().log_probs(others, ["Par"] * 3) == before
    finally:
        method.restore()
