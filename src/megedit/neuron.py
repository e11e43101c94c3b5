"""The dynamic neuron: FFN'(h) = FFN(h) + act(k.h + b) v, with one (k, b, v) per row of the batch.

Source: MeG (arXiv 2512.14395), section 3.3 and figure 2. The neuron is added by hooks on the modules of the FFN, so
the model's own code (attention kernels, KV cache, generation) stays as it is, and a row without a neuron gets the FFN's
output untouched, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megedit.lm.structure import Activation, FeedForward, first_input


@dataclass(frozen=True)
class NeuronWeights:
    """The weights of one neuron per row.

    keys: float32 (rows, d); biases: float32 (rows,); values: float32 (rows, d). `d` is the hidden size.
    """

    keys: Tensor
    biases: Tensor
    values: Tensor

    @classmethod
    def from_vectors(cls, vectors: Tensor, hidden_size: int) -> NeuronWeights:
        """Cut weight vectors (rows, 2d) = [k, v] or (rows, 2d + 1) = [k, b, v] into their parts.

        Raises ValueError for any other width.
        """
        width = vectors.shape[-1]
        if width not in (2 * hidden_size, 2 * hidden_size + 1):
            raise ValueError(f"a weight vector of width {width} does not fit the hidden size {hidden_size}")
        biases = vectors[:, hidden_size] if width % 2 else vectors.new_zeros(len(vectors))
        return cls(vectors[:, :hidden_size], biases, vectors[:, width - hidden_size :])

    def __getitem__(self, rows: Any) -> NeuronWeights:
        return NeuronWeights(self.keys[rows], self.biases[rows], self.values[rows])

    def __len__(self) -> int:
        return len(self.keys)


def neuron_output(hidden: Tensor, weights: NeuronWeights, activation: Activation) -> Tensor:
    """act(k.h + b) v for each row and position, computed in float32.

    hidden: any float dtype (rows, positions, d), the FFN's input. Returns float32 (rows, positions, d).
    """
    scores = torch.einsum("rpd,rd->rp", hidden.float(), weights.keys) + weights.biases[:, None]
    return activation(scores)[..., None] * weights.values[:, None, :]


@dataclass
class _Active:
    """The neurons of one batch, and how far its sequences have been computed."""

    weights: NeuronWeights  # (n, d): one for each familiar row
    rows: Tensor  # int64 (n,): which rows of the batch are familiar
    start: Tensor  # int64 (n,): the first column of the sequence on which each neuron acts
    batch_size: int
    column: Tensor  # int64 (): the column at which the next forward call begins; as a number it would be compiled in


class _Call(threading.local):
    """The forward call of one thread. Several threads may run one model at a time, each with its own neurons."""

    def __init__(self) -> None:  # once in each thread; defaults of the class would be compiled in as constants
        self.active: _Active | None = None
        self.shape = torch.Size()  # (rows, positions, d) of the layer's input in the forward call that is under way
        self.hidden: Tensor | None = None  # the FFN's input in that call


class DynamicNeuron:
    """The place of the neuron in a model: hooks the FFN of one layer, idle until `active` gives it weights.

    Weights are active in the thread that entered the context, and in no other.
    """

    def __init__(self, place: FeedForward, activation: Activation) -> None:
        self._activation = activation
        self._call = _Call()
        self._hooks = [
            place.layer.register_forward_pre_hook(self._keep_shape, with_kwargs=True),
            place.entry.register_forward_pre_hook(self._keep_input, with_kwargs=True),
            place.exit.register_forward_hook(self._add_neuron),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicNeuron:
        """The neuron itself: a copied model has hooks of the same neuron, idle in threads where it is not active."""
        return self

    def detach(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    @property
    def idle(self) -> bool:
        """True where no row of this thread's next forward call has a neuron."""
        return self._call.active is None

    @contextmanager
    def active(
        self, weights: NeuronWeights, rows: Tensor, start: Tensor, batch_size: int, column: int = 0
    ) -> Iterator[None]:
        """Within the context, compute row `rows[i]` of every batch with neuron `weights[i]`.

        rows: int64 (n,), indices into a batch of `batch_size` rows. When a forward call has m times as many
        rows (beams or several samples a prompt), each row stands m times in a row, as in `generate`.
        start: int64 (n,), the first column of the padded sequence on which the neuron acts.
        column: the number of columns that are in the KV cache already when the context is entered.
        """
        call, previous = self._call, self._call.active
        first = torch.tensor(column, device=start.device)
        call.active = _Active(weights, rows, start, batch_size, first) if len(rows) else None
        try:
            yield
        finally:
            call.active = previous

    def _keep_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call.shape = first_input(args, kwargs).shape

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call.active is not None:
            self._call.hidden = first_input(args, kwargs).reshape(self._call.shape)

    def _add_neuron(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the FFN's output with the neurons' outputs added to their rows, or None to leave it as it is."""
        active, hidden = self._call.active, self._call.hidden  # hidden: (batch rows * copies, positions, d)
        if active is None or hidden is None:
            return None
        self._call.hidden = None
        # beams and samples: m copies of a row stand one after the other
        copies = hidden.shape[0] // active.batch_size
        rows, start, weights = active.rows, active.start, active.weights
        if copies > 1:
            rows = (rows[:, None] * copies + torch.arange(copies, device=rows.device)).flatten()  # (n * copies,)
            index = torch.arange(len(weights), device=rows.device).repeat_interleave(copies)
            start, weights = start[index], weights[index]
        # columns of the sequence that this call computes
        columns = active.column + torch.arange(hidden.shape[1], device=hidden.device)  # (positions,)
        active.column = active.column + hidden.shape[1]

        ffn_output: Tensor = output[0] if isinstance(output, tuple) else output
        added = neuron_output(hidden[rows], weights, self._activation)  # (n * copies, positions, d)
        added = added * (columns[None, :] >= start[:, None])[..., None]
        edited = ffn_output.clone().view(hidden.shape)
        edited[rows] = (edited[rows].float() + added).to(ffn_output.dtype)
        edited = edited.view(ffn_output.shape)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited
