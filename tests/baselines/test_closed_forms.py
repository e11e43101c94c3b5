"""The closed forms solve their normal equations, and leave what they promise to leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megedit.baselines.alphaedit import alphaedit_change, null_space
from megedit.baselines.memit import memit_change
from megedit.baselines.ultraedit import Normalisation, ultraedit_change

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


def test_ultraedit_solves_its_normal_equations(keys: Tensor, residuals: Tensor) -> None:
    change = ultraedit_change(keys, residuals, 0.1)
    values = -0.1 * keys.double().square().sum(1, keepdim=True) * residuals.double()
    left = (keys.double().T @ keys.double() + torch.eye(INPUTS).double()) @ change.T
    assert torch.allclose(left, keys.double().T @ values, atol=1e-4)


def test_normalisation_is_that_of_all_rows_so_far() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(3)) * 4 + 2
    norm = Normalisation()
    norm.add(rows[:20])
    last = norm.add(rows[20:])
    whole = (rows[20:] - rows.mean(0)) / rows.std(0)
    assert torch.allclose(last, whole, atol=1e-4)
