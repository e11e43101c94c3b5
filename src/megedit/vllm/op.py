"""The neurons of a step as one operation of torch: FFN'(h) = FFN(h) + act(k.h + b) v, with a neuron for each token.

What differs from step to step stands in buffers, and the operation has no branch that depends on data: so it can be
compiled into a model's graph and captured in a CUDA graph. It stays whole there, for its registered name hides what is
inside from the compiler.

Source: MeG (arXiv 2512.14395), section 3.3.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from transformers.activations import ACT2FN

_activation = cache(ACT2FN.__getitem__)


@library.custom_op("megedit::add_neurons", mutates_args=())
def add_neurons(
    output: Tensor, hidden: Tensor, slots: Tensor, keys: Tensor, biases: Tensor, values: Tensor, activation: str
) -> Tensor:
    """The FFN's output (T, d) with the neuron of each token added; tokens of slot 0 keep theirs bit for bit.

    hidden: (T, d), the FFN's input. slots: int32 (T or more,), of each token. keys, values: float32 (slots, d);
    biases: float32 (slots,). activation: its name in transformers. Computed in float32.
    """
    own = slots[: len(hidden)]  # (T,)
    scores = (hidden.float() * keys.index_select(0, own)).sum(-1) + biases.index_select(0, own)  # (T,)
    added = _activation(activation)(scores)[:, None] * values.index_select(0, own)  # (T, d)
    return torch.where(own[:, None] > 0, (output.float() + added).to(output.dtype), output)


@add_neurons.register_fake
def _(output: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(output)


@library.custom_op("megedit::keep_hidden", mutates_args=("kept",))
def keep_hidden(hidden: Tensor, kept: Tensor) -> None:
    """Copy the FFN's input (T, d) to the first rows of a buffer, where its output leaves in another module."""
    kept[: len(hidden)].copy_(hidden)


@keep_hidden.register_fake
def _(hidden: Tensor, kept: Tensor) -> None:
    return None
