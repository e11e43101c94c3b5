"""The closed forms solve their normal equations, and leave what they promise to leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megedit.baselines.alphaedit import alphaedit_change, null_space
from megedit.baselines.memit import memit_change

EDITS, INPUTS, OUTPUTS = 5, 12, 4


@pytest.fixture
def keys() -> Tensor:
    return torch.randn(EDITS, INPUTS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def residuals() -> Tensor:
    return torch.randn(EDITS, OUTPUTS, generator=torch.Generator().manual_seed(1))


def preserved(rank: int = 6) -> Tensor:
    """Keys of text, which lie in a part of the space."""
    drawn = torch.Generator().manual_seed(2)
    return torch.randn(100, rank, generator=drawn).double() @ torch.randn(rank, INPUTS, generator=drawn).double()


def test_memit_solves_its_normal_equations(keys: Tensor, residuals: Tensor) -> None:
    moment = preserved().T @ preserved() / 100
    change = memit_change(keys, residuals, moment, 10.0)
    left = change @ (10.0 * moment.double() + keys.double().T @ keys.double())
    assert torch.allclose(left, residuals.double().T @ keys.double(), atol=1e-4)


def test_memit_without_weight_is_least_squares(keys: Tensor, residuals: Tensor) -> None:
    """Where nothing is to be kept, every key gets its residual."""
    change = memit_change(keys, residuals, torch.eye(INPUTS) * 1e-9, 1.0)
    assert torch.allclose(keys.double() @ change.T, residuals.double(), atol=1e-4)


def test_alphaedit_solves_its_normal_equations(keys: Tensor, residuals: Tensor) -> None:
    projection = null_space(preserved().T @ preserved() / 100, 1e-6)
    change = alphaedit_change(keys, residuals, projection, 0.5)
    left = change @ (keys.double().T @ keys.double() @ projection + 0.5 * torch.eye(INPUTS).double())
    assert torch.allclose(left, residuals.double().T @ keys.double() @ projection, atol=1e-4)


def test_alphaedit_leaves_preserved_keys_alone(keys: Tensor, residuals: Tensor) -> None:
    projection = null_space(preserved().T @ preserved() / 100, 1e-6)
    change = alphaedit_change(keys, residuals, projection, 0.5)
    assert change.abs().max() > 0.01
    assert (preserved() @ change.T).abs().max() < 1e-6
    assert torch.allclose(projection @ projection, projection, atol=1e-9)
