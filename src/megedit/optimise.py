"""Optimising neurons: many at a time by gradients, until each leads in all of its own examples.

Source: MeG (arXiv 2512.14395), section 3.3, which optimises one edit after the other. Here everything below the neurons
is computed once, the loss is taken over the tokens that compete with an answer and not over the whole vocabulary, and a
neuron is done as soon as every answer token leads by a margin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megedit.lm.backbone import Backbone
from megedit.lm.batches import IGNORED, Prepared
from megedit.neuron import NeuronWeights, neuron_output
from megedit.runtime.checkpoint import cosine
from megedit.settings import CollectionSettings

REVIEW = 8  # steps between two looks at the whole vocabulary
FURTHER = 1.0  # logits; the lead that is asked for in a further format at most
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants


def shared_start(backbone: Backbone, batch: Prepared) -> Tensor:
    """The neuron all edits start from: k along the mean FFN input at the last prompt token, k.h = 1; v = 0.

    Returns float32 (2d or 2d + 1,).
    """
    mean = batch.split.ffn_input[:, -batch.labels.shape[1]].float().mean(0)  # (d,)
    start = torch.zeros(backbone.weight_size, device=mean.device)
    start[: backbone.hidden_size] = mean / mean.square().sum()
    return start


def answer_logits(
    backbone: Backbone, batch: Prepared, weights: NeuronWeights | None, vocabulary: Tensor | None = None
) -> Tensor:
    """Logits of the answer positions with these neurons: (rows, answer positions, vocabulary), model's dtype.

    vocabulary: int64 (tokens,), the tokens whose logits are wanted; all of them when not given.
    """
    added = None if weights is None else neuron_output(batch.split.ffn_input, weights, backbone.activation)
    return backbone.suffix(batch.split, added, batch.labels.shape[1], vocabulary)


@torch.no_grad()
def answer_leads(logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest difference between an answer token's logit and the best other one, for each row.

    Above 0, greedy decoding gives the answer. logits: (rows, answer, vocabulary). labels: int64 (rows, answer), one
    answer token a row at least. Returns float32 (rows,).
    """
    if len(labels) == 0:
        return logits.new_zeros(0, dtype=torch.float32)
    targets = labels.clamp(min=0)[..., None]  # (rows, answer, 1)
    target_logits = logits.gather(-1, targets)[..., 0].float()  # (rows, answer)
    best = logits.topk(2)  # (rows, answer, 2)
    rival = torch.where(best.indices[..., 0] == targets[..., 0], best.values[..., 1], best.values[..., 0]).float()
    return (target_logits - rival).masked_fill(labels == IGNORED, math.inf).amin(1)


@torch.no_grad()
def loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each row's mean cross-entropy over its answer tokens: softmax - target, in the logits' dtype.

    Written out because autograd keeps several float32 copies of the whole vocabulary, the largest tensor here.
    logits: (rows, answer, vocabulary). labels: int64 (rows, answer).
    """
    counted = labels != IGNORED  # (rows, answer)
    gradient = logits.float().softmax(-1)  # (rows, answer, vocabulary)
    gradient.scatter_add_(-1, labels.clamp(min=0)[..., None], -torch.ones_like(labels, dtype=torch.float32)[..., None])
    gradient *= (counted / counted.sum(1, keepdim=True))[..., None]
    return gradient.to(logits.dtype)


class _Rivals:
    """The tokens over which the loss of a batch is taken: all answers, and what was ever close to the top.

    tokens: int64 (tokens,), sorted; None as long as nothing is known, or when the whole vocabulary is wanted.
    """

    def __init__(self, labels: Tensor, count: int) -> None:
        self.tokens: Tensor | None = None
        self._known, self._count = labels[labels != IGNORED].unique(), count

    def add(self, logits: Tensor) -> None:
        """Take in the most likely tokens of positions (rows, positions, whole vocabulary)."""
        if self._count:
            likely = logits.topk(min(self._count, logits.shape[-1])).indices
            self._known = self.tokens = torch.cat([self._known, likely.flatten()]).unique()

    def indices(self, labels: Tensor) -> Tensor:
        """The labels as indices into the tokens, in the labels' shape."""
        assert self.tokens is not None, "nothing was added yet"
        return torch.where(labels == IGNORED, IGNORED, torch.searchsorted(self.tokens, labels.clamp(min=0)))


@dataclass(frozen=True)
class Rows:
    """A batch of examples and the neuron that answers each: row i is answered with neuron `neuron_of[i]`.

    neuron_of: int64 (rows,), all of 0 to the number of neurons. counted: bool (rows,), false where a neuron is worked
    on but does not fail. Both on the device of the batch.
    """

    batch: Prepared
    neuron_of: Tensor
    counted: Tensor

    def only(self, neurons: Tensor) -> Rows:
        """The rows of some of the neurons, bool (neurons,), which are numbered anew."""
        rows = neurons[self.neuron_of].nonzero()[:, 0]
        numbers = neurons.cumsum(0) - 1
        return Rows(self.batch[rows], numbers[self.neuron_of[rows]], self.counted[rows])

    def weakest(self, leads: Tensor, neurons: int) -> Tensor:
        """The smallest of the values (rows,) among the rows of each neuron: (neurons,)."""
        return leads.new_full((neurons,), math.inf).scatter_reduce(0, self.neuron_of, leads, "amin")

    def leads(self, leads: Tensor, neurons: int) -> Tensor:
        """The smallest lead among the rows (rows,) of each neuron that count: (neurons,)."""
        return self.weakest(leads.masked_fill(~self.counted, math.inf), neurons)

    def lead_by(self, leads: Tensor, neurons: int, margin: float, further: float | Tensor) -> Tensor:
        """True for each neuron whose rows that count lead by the margin, and the others by `further`: (neurons,).

        further: one for all, or float32 (rows,).
        """
        asked = torch.where(self.counted, margin, further)  # (rows,)
        return self.weakest(leads - asked, neurons) >= 0


@dataclass(frozen=True)
class Found:
    """Neurons that are done: which (int64 (neurons,)), their weights and smallest leads; at which step."""

    neurons: Tensor
    weights: Tensor  # float32 (neurons, 2d or 2d + 1)
    leads: Tensor  # float32 (neurons,), over the whole vocabulary, of the rows that count
    weakest: Tensor  # float32 (neurons,), of all rows
    step: int


def optimise(backbone: Backbone, rows: Rows, start: Tensor, settings: CollectionSettings) -> Iterator[Found]:
    """Optimise neurons on a batch of examples until each leads in all of its own by what is asked.

    start: float32 (neurons, L), L = 2d or 2d + 1. Yields neurons as they are done, all of them in the end.
    """
    d, weights, neurons = backbone.hidden_size, start, torch.arange(len(start), device=start.device)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)  # (neurons, L), Adam's moments of each neuron
    lr = torch.full_like(start[0], settings.key_lr)  # (L,)
    lr[-d:] = settings.value_lr
    rivals = _Rivals(rows.batch.labels, settings.rivals)
    leads = torch.full_like(rows.neuron_of, -math.inf, dtype=torch.float32)  # (rows,), as they were seen last

    for step in range(settings.steps + 1):
        # 1. Logits with the neurons as they are, over the rivals or, at a review, over the whole vocabulary; further
        # formats in which a neuron was seen to lead rest
        last = step == settings.steps
        weights.requires_grad_(not last)
        woken = rows.counted | (leads < FURTHER)  # (rows,)
        active = woken.nonzero()[:, 0]
        batch, of = (rows.batch, rows.neuron_of) if woken.all() else (rows.batch[active], rows.neuron_of[active])
        vocabulary = rivals.tokens if step % REVIEW else None
        labels = batch.labels if vocabulary is None else rivals.indices(batch.labels)  # (rows, answer)
        logits = answer_logits(backbone, batch, NeuronWeights.from_vectors(weights[of], d), vocabulary)

        # 2. Which neurons are done; their leads must hold against the whole vocabulary, and in all rows
        leads[active] = answer_leads(logits.detach(), labels)  # (rows,)
        done = rows.lead_by(leads, len(weights), settings.margin, FURTHER) | last  # (neurons,)
        if vocabulary is None:
            rivals.add(logits.detach())
        if done.any() and not (vocabulary is None and woken.all()):
            chosen = done[rows.neuron_of].nonzero()[:, 0]
            with torch.no_grad():
                neuron = NeuronWeights.from_vectors(weights[rows.neuron_of[chosen]], d)
                whole = answer_logits(backbone, rows.batch[chosen], neuron)
            leads[chosen] = answer_leads(whole, rows.batch.labels[chosen])
            rivals.add(whole)
            done = rows.lead_by(leads, len(weights), settings.margin, FURTHER) | last
        if done.any():
            counted, weakest = rows.leads(leads, len(weights))[done], rows.weakest(leads, len(weights))[done]
            yield Found(neurons[done], weights[done].detach(), counted, weakest, step)
            if done.all():
                return

        # 3. A step of Adam, for each neuron as if it were alone
        (gradient,) = torch.autograd.grad(logits, weights, loss_gradient(logits.detach(), labels))  # (neurons, L)
        update, first, second = _adam(gradient, first, second, step)
        weights = weights.detach() - cosine(step, settings.steps) * lr * update

        # 4. What is done leaves the batch
        if done.any():
            leads, keep = leads[~done[rows.neuron_of]], (~done).nonzero()[:, 0]
            rows = rows.only(~done)
            weights, first, second, neurons = weights[keep], first[keep], second[keep], neurons[keep]


def _adam(gradient: Tensor, first: Tensor, second: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of a step of Adam, and its new moments, all in the gradient's shape (arXiv 1412.6980)."""
    first = BETA_1 * first + (1 - BETA_1) * gradient
    second = BETA_2 * second + (1 - BETA_2) * gradient.square()
    mean, square = first / (1 - BETA_1 ** (step + 1)), second / (1 - BETA_2 ** (step + 1))
    return mean / (square.sqrt() + EPSILON), first, second
