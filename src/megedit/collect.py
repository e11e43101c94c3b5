"""Knowledge-weight collection: for every edit, the neuron that makes the frozen model give its target.

Source: MeG (arXiv 2512.14395), section 3.3. What differs from the paper's recipe:

- Edits with the same target share a neuron where they can. It is optimised on a few of them together; an edit that it
  does not serve is optimised alone, from there. Such a neuron says the target whatever was asked, so it is robust to
  other wordings, and a generator has far fewer neurons to tell apart.
- Many neurons are optimised at a time. Everything below the neuron and, when it acts from the last prompt token on, the
  keys and values of all earlier positions are computed once. The loss is taken over the tokens that compete with an
  answer and not over the whole vocabulary. A neuron is done as soon as every answer token leads by a margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from megedit.lm.backbone import Backbone
from megedit.lm.batches import IGNORED, Example, Prepared, batch_units, prepare
from megedit.neuron import NeuronWeights, neuron_output
from megedit.runtime.callbacks import Advance, Keep, keep_nothing, no_progress
from megedit.runtime.checkpoint import cosine
from megedit.runtime.processes import ALONE, Processes
from megedit.settings import CollectionSettings as CollectionSettings

REVIEW = 8  # steps between two looks at the whole vocabulary
START_SAMPLE = 64  # edits whose mean is the neuron that all start from


@dataclass(frozen=True)
class Collected:
    """The result for all edits, in their order.

    weights: float32 (edits, 2d or 2d + 1). leads: float32 (edits,), the smallest lead in logits of an answer token
    over all others, below 0 where the edit failed. steps: int64 (edits,), optimisation steps taken.
    """

    weights: Tensor
    leads: Tensor
    steps: Tensor

    @property
    def succeeded(self) -> Tensor:
        return self.leads > 0


def shared_start(backbone: Backbone, batch: Prepared) -> Tensor:
    """The neuron all edits start from: k along the mean FFN input at the last prompt token, k.h = 1; v = 0.

    Returns float32 (2d or 2d + 1,).
    """
    mean = batch.split.ffn_input[:, -batch.labels.shape[1]].float().mean(0)
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

    Above 0, greedy decoding gives the answer. Returns float32 (rows,).
    """
    targets = labels.clamp(min=0)[..., None]
    target_logits = logits.gather(-1, targets)[..., 0].float()
    best = logits.topk(2)  # (rows, answer, 2)
    rival = torch.where(best.indices[..., 0] == targets[..., 0], best.values[..., 1], best.values[..., 0]).float()
    return (target_logits - rival).masked_fill(labels == IGNORED, math.inf).amin(1)


@torch.no_grad()
def loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each row's mean cross-entropy over its answer tokens: softmax - target, in the logits' dtype.

    Written out because autograd keeps several float32 copies of the whole vocabulary, the largest tensor here.
    """
    counted = labels != IGNORED
    gradient = logits.float().softmax(-1)
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

    def places(self, labels: Tensor) -> Tensor:
        """Where the labels stand among the tokens, in the labels' shape."""
        assert self.tokens is not None, "nothing was added yet"
        return torch.where(labels == IGNORED, IGNORED, torch.searchsorted(self.tokens, labels.clamp(min=0)))


@dataclass(frozen=True)
class Found:
    """Neurons that are done: which (int64 (neurons,)), their weights and the smallest lead of each; at which step."""

    neurons: Tensor
    weights: Tensor  # float32 (neurons, 2d or 2d + 1)
    leads: Tensor  # float32 (neurons,), over the whole vocabulary
    step: int


def optimise(
    backbone: Backbone, batch: Prepared, neuron_of: Tensor, start: Tensor, settings: CollectionSettings
) -> Iterator[Found]:
    """Optimise neurons on a batch in which row i is answered with neuron `neuron_of[i]` (int64 (rows,)).

    start: float32 (neurons, 2d or 2d + 1). Yields neurons as they are done, all of them in the end.
    """
    d, count = backbone.hidden_size, len(start)
    weights, neurons, neuron_of = start, torch.arange(count, device=start.device), neuron_of.to(start.device)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)  # Adam moments, neuron by neuron
    lr = torch.full_like(start[0], settings.key_lr)
    lr[-d:] = settings.value_lr
    rivals = _Rivals(batch.labels, settings.rivals)

    def weakest(leads: Tensor) -> Tensor:
        """The smallest lead among the rows of each neuron."""
        return leads.new_full((len(weights),), math.inf).scatter_reduce(0, neuron_of, leads, "amin")

    for step in range(settings.steps + 1):
        last = step == settings.steps
        weights.requires_grad_(not last)
        vocabulary = rivals.tokens if step % REVIEW else None
        labels = batch.labels if vocabulary is None else rivals.places(batch.labels)
        logits = answer_logits(backbone, batch, NeuronWeights.from_vectors(weights[neuron_of], d), vocabulary)
        leads = answer_leads(logits.detach(), labels)
        done = (weakest(leads) >= settings.margin) | last
        if vocabulary is None:
            rivals.add(logits.detach())
        elif done.any():  # the lead must hold against the whole vocabulary
            rows = done[neuron_of].nonzero()[:, 0]
            with torch.no_grad():
                whole = answer_logits(backbone, batch[rows], NeuronWeights.from_vectors(weights[neuron_of[rows]], d))
            leads[rows] = answer_leads(whole, batch.labels[rows])
            rivals.add(whole)
            done = (weakest(leads) >= settings.margin) | last
        if done.any():
            yield Found(neurons[done], weights[done].detach(), weakest(leads)[done], step)
            if done.all():
                return
        (gradient,) = torch.autograd.grad(logits, weights, loss_gradient(logits.detach(), labels))
        weights = weights.detach()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        weights = weights - cosine(step, settings.steps) * lr * update
        if done.any():
            rows, keep = (~done)[neuron_of].nonzero()[:, 0], (~done).nonzero()[:, 0]
            batch, neuron_of = batch[rows], ((~done).cumsum(0) - 1)[neuron_of[rows]]
            weights, first, second, neurons = weights[keep], first[keep], second[keep], neurons[keep]


def prepare_all(
    backbone: Backbone, examples: Sequence[Example], settings: CollectionSettings, pad_id: int
) -> Iterator[Prepared]:
    """All examples in batches of similar length, one batch in memory at a time."""
    for indices in batch_units(examples, [[i] for i in range(len(examples))], settings.batch_size):
        yield prepare(backbone, examples, indices, settings.positions, pad_id)


Compute = Callable[[list[int]], dict[str, Tensor]]
Result = tuple[list[int], dict[str, Tensor]]


def collect(
    backbone: Backbone,
    examples: Sequence[Example],
    settings: CollectionSettings,
    pad_id: int,
    progress: Advance = no_progress,
    keep: Keep = keep_nothing,
    known: Mapping[tuple[int, ...], Tensor] = MappingProxyType({}),
    processes: Processes = ALONE,
) -> Collected:
    """Collect a neuron for every example; one that fails is tried again, alone and with more steps.

    What still fails has a lead of 0 or less in the result. progress: called with the number of edits just finished.
    keep: given the name of a batch and what computes its result, returns the result; it may have it from before.
    known: by answer, a neuron (float32 (L,)) that says it for other edits already, and is shared where it can be.
    processes: each collects some of the batches and takes over the others' with `keep`, which must then share them.
    """
    spread = torch.linspace(0, len(examples) - 1, min(len(examples), START_SAMPLE)).long().tolist()
    start = shared_start(backbone, prepare(backbone, examples, spread, settings.positions, pad_id))
    targets: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        targets.setdefault(example.answer, []).append(index)
    new = [members for answer, members in targets.items() if answer not in known]
    groups = [members[: settings.shared] for members in new] if settings.shared else []
    of_target = {answer: weights.to(start.device) for answer, weights in known.items()}

    def each(name: str, batches: list[list[int]], compute: Compute, done: Advance) -> Iterator[Result]:
        """Every batch with its result; this process's own ones are computed first."""
        jobs = [(f"{name}-{number:05}", batch) for number, batch in enumerate(batches)]
        for job, batch in processes.own(jobs) if processes.count > 1 else ():
            keep(job, partial(compute, batch))
            done(len(batch))
        processes.wait()
        for number, (job, batch) in enumerate(jobs):
            yield batch, keep(job, partial(compute, batch))
            if processes.count == 1 or number % processes.count != processes.rank:
                done(len(batch))

    def share(units: list[int]) -> dict[str, Tensor]:
        return _shared(backbone, examples, [groups[unit] for unit in units], start, settings, pad_id)

    for units, found in each("shared", batch_units(examples, groups, settings.batch_size), share, no_progress):
        for unit, weights in zip(units, found["weights"].to(start.device), strict=True):
            of_target[examples[groups[unit][0]].answer] = weights

    def finish(indices: list[int]) -> dict[str, Tensor]:
        own = torch.stack([of_target.get(examples[i].answer, start) for i in indices])
        batch = prepare(backbone, examples, indices, settings.positions, pad_id)
        return asdict(_alone(backbone, batch, own, start, settings))

    result = Collected(
        torch.zeros(len(examples), backbone.weight_size),
        torch.zeros(len(examples)),
        torch.zeros(len(examples), dtype=torch.long),
    )
    alone = batch_units(examples, [[i] for i in range(len(examples))], settings.batch_size)
    for indices, found in each("neurons", alone, finish, progress):
        result.weights[indices], result.leads[indices] = found["weights"], found["leads"]
        result.steps[indices] = found["steps"].long()
    return result


def _shared(
    backbone: Backbone,
    examples: Sequence[Example],
    groups: Sequence[Sequence[int]],
    start: Tensor,
    settings: CollectionSettings,
    pad_id: int,
) -> dict[str, Tensor]:
    """One neuron for each group of examples, at the step at which it served all of them, or the last."""
    indices = [index for group in groups for index in group]
    neuron_of = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    batch = prepare(backbone, examples, indices, settings.positions, pad_id)
    weights = torch.zeros(len(groups), backbone.weight_size)
    with backbone.plain_attention():
        for found in optimise(backbone, batch, neuron_of, start.repeat(len(groups), 1), settings):
            weights[found.neurons.cpu()] = found.weights.cpu()
    return {"weights": weights}


def _alone(backbone: Backbone, batch: Prepared, own: Tensor, start: Tensor, settings: CollectionSettings) -> Collected:
    """One neuron for each row, the row's own start where that serves it; rows that fail begin at `start` again."""
    weights = own.cpu().clone()
    neurons = NeuronWeights.from_vectors(own, backbone.hidden_size)
    with torch.no_grad():
        leads = answer_leads(answer_logits(backbone, batch, neurons), batch.labels).cpu()
    steps = torch.zeros(len(batch), dtype=torch.long)
    open_rows = (leads < settings.shared_margin).nonzero()[:, 0]
    for attempt in range(settings.retries + 1):
        if not len(open_rows):
            break
        effort = replace(settings, steps=settings.steps * 2**attempt)
        begin = own[open_rows.to(own.device)] if attempt == 0 else start.repeat(len(open_rows), 1)
        with backbone.plain_attention():
            for found in optimise(backbone, batch[open_rows], torch.arange(len(open_rows)), begin, effort):
                rows, lead = open_rows[found.neurons.cpu()], found.leads.cpu()
                better = lead > leads[rows]
                weights[rows[better]], leads[rows[better]] = found.weights.cpu()[better], lead[better]
                steps[rows] += found.step
        open_rows = (leads <= 0).nonzero()[:, 0]
    return Collected(weights, leads, steps)


@torch.no_grad()
def answer_leads_of(
    backbone: Backbone,
    batches: Iterable[Prepared],
    weights: Tensor,
    progress: Advance = no_progress,
) -> Tensor:
    """Smallest answer lead of every edit with the given weights (edits, L): float32 (edits,), on the CPU."""
    leads = torch.zeros(len(weights))
    for batch in batches:
        neurons = NeuronWeights.from_vectors(weights[batch.indices], backbone.hidden_size)
        leads[batch.indices] = answer_leads(answer_logits(backbone, batch, neurons), batch.labels).cpu()
        progress(len(batch))
    return leads
