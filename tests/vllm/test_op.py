"""The operation that adds neurons: the sum that it computes, and the rows that it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library
from torch.nn.functional import silu

from megedit.vllm import op

T, D, SLOTS = 7, 16, 4


def case(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Output and hidden (T, d); slots, longer than the step; keys, biases and values with a zero row 0."""
    torch.manual_seed(0)
    tables = [torch.randn(SLOTS, D), torch.randn(SLOTS), torch.randn(SLOTS, D)]
    for table in tables:
        table[0] = 0
    slots = torch.tensor([0, 1, 1, 0, 3, 0, 2, 3, 3], dtype=torch.int32)
    return torch.randn(T, D).to(dtype), torch.randn(T, D).to(dtype), slots, *tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_has_its_own_neuron(dtype: torch.dtype) -> None:
    output, hidden, slots, keys, biases, values = case(dtype)
    edited = op.add_neurons(output, hidden, slots, keys, biases, values, "silu")
    assert edited.dtype == dtype
    for token, slot in enumerate(slots[:T].tolist()):
        score = (hidden[token].float() * keys[slot]).sum() + biases[slot]
        expected = (output[token].float() + silu(score) * values[slot]).to(dtype)
        assert torch.equal(edited[token], expected if slot else output[token])


def test_tokens_without_a_neuron_keep_their_bits() -> None:
    """Also where adding zero would change them: minus zero, infinity, not a number."""
    output, hidden, slots, keys, biases, values = case(torch.float32)
    output[0, 0], output[3, 0], hidden[5, 0] = -0.0, torch.inf, torch.nan
    edited = op.add_neurons(output, hidden, slots, keys, biases, values, "silu")
    idle = slots[:T] == 0
    assert torch.equal(edited[idle].view(torch.int32), output[idle].view(torch.int32))


def test_a_neuron_touches_its_own_token_only() -> None:
    output, hidden, slots, keys, biases, values = case(torch.float32)
    before = op.add_neurons(output, hidden, slots, keys, biases, values, "silu")
    values = values.clone()
    values[3] = torch.nan
    after = op.add_neurons(output, hidden, slots, keys, biases, values, "silu")
    others = slots[:T] != 3
    assert torch.equal(after[others], before[others]) and after[~others].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operations_are_registered_rightly(dtype: torch.dtype) -> None:
    output, hidden, slots, *tables = case(dtype)
    checks = ("test_schema", "test_faketensor")
    library.opcheck(op.add_neurons, (output, hidden, slots, *tables, "silu"), test_utils=checks)
    library.opcheck(op.keep_hidden, (hidden, torch.zeros(T + 2, D, dtype=dtype)), test_utils=checks)
