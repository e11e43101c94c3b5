"""Which token of a step has which neuron: the tables that the operation reads, filled before each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megedit.neuron import NeuronWeights


@dataclass(frozen=True)
class Neuron:
    """The neuron of one request, as the engine core sends it to its workers.

    layer: the decoder layer of its FFN. first: the first token of the request on which it acts. weights: float32 (L,).
    digest: of all these; two neurons of one digest compute the same.
    """

    layer: int
    first: int
    weights: NDArray[np.float32]
    digest: str


@dataclass(frozen=True)
class Span:
    """`count` tokens of a request in a step: from `offset` on in the step, and from `start` on in the request."""

    request: str
    offset: int
    count: int
    start: int


def spans(requests: Sequence[str], counts: Sequence[int], starts: Sequence[int]) -> list[Span]:
    """The tokens of a step whose requests stand one after the other, each with `counts` tokens."""
    offsets = np.cumsum([0, *counts]).tolist()
    return [Span(*each) for each in zip(requests, offsets, map(int, counts), map(int, starts), strict=False)]


class Slots:
    """Numbers from 1 to `count` for requests that have a neuron; 0 is no neuron's.

    A request keeps its number until it is dropped, or until another one needs it in a step in which the first is not:
    so a step's requests always find room, whatever is preempted, resumed or waiting.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count, 0, -1))
        self._slots: dict[str, int] = {}

    def __getitem__(self, request: str) -> int:
        return self._slots[request]

    def __len__(self) -> int:
        return len(self._slots)

    def drop(self, request: str) -> None:
        """Free the number of a request, if it has one."""
        if request in self._slots:
            self._free.append(self._slots.pop(request))

    def assign(self, requests: Iterable[str]) -> list[str]:
        """Give each of a step's requests a number; returns those that had none."""
        wanted = dict.fromkeys(requests)
        new = [request for request in wanted if request not in self._slots]
        if len(new) > len(self._free):
            for idle in self._slots.keys() - wanted.keys():
                self.drop(idle)
        for request in new:
            self._slots[request] = self._free.pop()
        return new


class Tables(nn.Module):
    """The neurons of a step in one layer, in tensors that stay where they are.

    slots: int32 (tokens,), of each token of the step. keys, values: float32 (1 + requests, d); biases: float32
    (1 + requests,); of each slot, row 0 being zero. hidden: (tokens, d), the FFN's input where it has to be kept.
    activation: the name in transformers of the function that the neurons share with the FFN.
    """

    slots: Tensor
    keys: Tensor
    biases: Tensor
    values: Tensor
    hidden: Tensor

    def __init__(
        self,
        requests: int,
        tokens: int,
        hidden_size: int,
        activation: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        rows = 1 + requests
        self.hidden_size, self.activation = hidden_size, activation
        self._dtype = dtype  # of the model
        self.register_buffer("slots", torch.zeros(tokens, dtype=torch.int32, device=device), persistent=False)
        self.register_buffer("keys", torch.zeros(rows, hidden_size, device=device), persistent=False)
        self.register_buffer("biases", torch.zeros(rows, device=device), persistent=False)
        self.register_buffer("values", torch.zeros(rows, hidden_size, device=device), persistent=False)
        self._numbers = Slots(requests)
        self._filled = 0  # tokens of the last step, behind which all slots are 0

    def keep_hidden(self) -> None:
        """Make room for the FFN's input."""
        kept = torch.zeros(len(self.slots), self.hidden_size, dtype=self._dtype, device=self.slots.device)
        self.register_buffer("hidden", kept, persistent=False)

    def drop(self, request: str) -> None:
        """Forget the neuron of a request, which has ended or begins anew."""
        self._numbers.drop(request)

    def fill(self, step: Sequence[Span], neurons: Mapping[str, Neuron]) -> None:
        """Take over a step's tokens; `neurons` are those of this layer, by request."""
        edited = [span for span in step if span.request in neurons]
        if new := self._numbers.assign(span.request for span in edited):
            self._write([self._numbers[request] for request in new], [neurons[request] for request in new])
        if not edited and not self._filled:
            return
        used = max((span.offset + span.count for span in edited), default=0)
        slots = np.zeros(max(used, self._filled), dtype=np.int32)  # (tokens,)
        for span in edited:
            skipped = min(max(neurons[span.request].first - span.start, 0), span.count)
            slots[span.offset + skipped : span.offset + span.count] = self._numbers[span.request]
        self._filled = used
        self.slots[: len(slots)].copy_(self._pinned(torch.from_numpy(slots)), non_blocking=True)

    def _write(self, slots: list[int], neurons: list[Neuron]) -> None:
        rows = self._on_device(torch.tensor(slots))  # (n,)
        vectors = np.stack([self._with_bias(neuron.weights) for neuron in neurons])  # (n, 2d + 1)
        weights = NeuronWeights.from_vectors(self._on_device(torch.from_numpy(vectors)), self.hidden_size)
        self.keys[rows], self.biases[rows], self.values[rows] = weights.keys, weights.biases, weights.values

    def _with_bias(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights (L,) of a neuron as (2d + 1,): adapters of one layer may have neurons with and without a bias."""
        d = self.hidden_size
        return np.insert(weights, d, 0) if len(weights) == 2 * d else weights

    def _on_device(self, tensor: Tensor) -> Tensor:
        return self._pinned(tensor).to(self.slots.device, non_blocking=True)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """The tensor in memory from which a GPU copies without being waited for; torch keeps it until that is done."""
        return tensor.pin_memory() if self.slots.is_cuda else tensor
