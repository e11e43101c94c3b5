"""Knowledge-weight collection: for every edit, the neuron that makes the frozen model give its target.

Source: MeG (arXiv 2512.14395), section 3.3. What differs from the paper's recipe:

- Edits with the same target share a neuron where they can. It is optimised on a few of them together; an edit that it
  does not serve is optimised alone, from there. Such a neuron says the target whatever was asked, so it is robust to
  other wordings, and a generator has far fewer neurons to tell apart.
- A neuron is optimised on several examples of its edit at once: its prompt and wordings in the adapter's template, in
  all of which it has to lead, and its prompt in a few other formats, which it is worked on for but does not fail by.
- Many neurons are optimised at a time. Everything below the neuron and, when it acts from the last prompt token on, the
  keys and values of all earlier positions are computed once. The loss is taken over the tokens that compete with an
  answer and not over the whole vocabulary. A neuron is done as soon as every answer token leads by a margin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
FURTHER = 1.0  # logits; the lead that is asked for in a further format at most
START_SAMPLE = 64  # examples whose mean is the neuron that all start from
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants


@dataclass(frozen=True)
class Collected:
    """The result for all edits, in their order.

    weights: float32 (edits, 2d or 2d + 1). leads: float32 (edits,), the smallest lead in logits of an answer token
    over all others, in the adapter's template, below 0 where the edit failed. steps: int64 (edits,), optimisation steps
    taken.
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


def prepare_all(
    backbone: Backbone, examples: Sequence[Example], settings: CollectionSettings, pad_id: int
) -> Iterator[Prepared]:
    """All examples that have an answer in batches of similar length, one batch in memory at a time."""
    usable = _usable(examples)
    for batch in batch_units(examples, [[i] for i in usable], settings.batch_size):
        yield prepare(backbone, examples, [usable[unit] for unit in batch], settings.positions, pad_id)


def _usable(examples: Sequence[Example]) -> list[int]:
    """The examples that have an answer."""
    return [i for i, example in enumerate(examples) if example.refused is None]


def collect(
    backbone: Backbone,
    examples: Sequence[Example],
    settings: CollectionSettings,
    pad_id: int,
    advance: Advance = no_progress,
    keep: Keep = keep_nothing,
    known: Mapping[tuple[int, ...], Tensor] = MappingProxyType({}),
    processes: Processes = ALONE,
) -> Collected:
    """Collect a neuron for every edit, an example with its wordings and contexts.

    One that fails is tried again, alone and with more steps. What still fails has a lead of 0 or less in the result,
    and so has an example that was refused; a failure in a context alone does not count. advance: called with
    the number of edits just finished. keep: given the name of a batch and what computes its result, returns the result;
    it may have it from before. known: by answer, a neuron (float32 (L,)) that says it for other edits already, and is
    shared where it can be. processes: each collects some of the batches and takes over the others' with `keep`, which
    must then share them.
    """
    result = Collected(
        torch.zeros(len(examples), backbone.weight_size),
        torch.zeros(len(examples)),
        torch.zeros(len(examples), dtype=torch.long),
    )
    usable = _usable(examples)
    if len(usable) < len(examples):
        advance(len(examples) - len(usable))
    if not usable:
        return result
    asked = _Asked.of(examples)
    rows = [row for i in usable for row in asked.of_edit[i]]
    spread = torch.linspace(0, len(rows) - 1, min(len(rows), START_SAMPLE)).long().tolist()
    sample = prepare(backbone, asked.examples, [rows[i] for i in spread], settings.positions, pad_id)
    start = shared_start(backbone, sample)
    run = _Collection(backbone, examples, asked, settings, pad_id, start, keep, processes)
    of_target = run.shared(usable, known)
    for indices, found in run.alone(usable, of_target, known, advance):
        result.weights[indices], result.leads[indices] = found["weights"], found["leads"]
        result.steps[indices] = found["steps"].long()
    return result


@dataclass(frozen=True)
class _Asked:
    """All examples of all edits in one list. of_edit: the indices of each edit's; counted: those in its template."""

    examples: list[Example]
    of_edit: list[list[int]]
    counted: list[bool]

    @classmethod
    def of(cls, edits: Iterable[Example]) -> _Asked:
        asked = cls([], [], [])
        for edit in edits:
            own = [edit, *edit.wordings, *edit.contexts]
            asked.of_edit.append(list(range(len(asked.examples), len(asked.examples) + len(own))))
            asked.examples.extend(own)
            asked.counted.extend(i <= len(edit.wordings) for i in range(len(own)))
        return asked


@dataclass(frozen=True)
class _Collection:
    """The two passes over all edits: neurons for the targets that several edits share, then one for each edit.

    edits: the example of each. asked: those that its neuron is for. start: float32 (L,), the neuron that all begin
    with.
    """

    backbone: Backbone
    edits: Sequence[Example]
    asked: _Asked
    settings: CollectionSettings
    pad_id: int
    start: Tensor
    keep: Keep
    processes: Processes

    def shared(self, usable: Sequence[int], known: Mapping[tuple[int, ...], Tensor]) -> dict[tuple[int, ...], Tensor]:
        """By answer, the neuron (L,) optimised on a few of the edits that have it; the known ones are among them."""
        of_target = {answer: weights.to(self.start.device) for answer, weights in known.items()}
        targets: dict[tuple[int, ...], list[int]] = {}
        for index in usable:
            targets.setdefault(self.edits[index].answer, []).append(index)
        new = [members for answer, members in targets.items() if answer not in known]
        groups = [members[: self.settings.shared] for members in new] if self.settings.shared else []

        def compute(units: list[int]) -> dict[str, Tensor]:
            return {"weights": self._optimised_together([groups[unit] for unit in units])}

        for units, found in self._results("shared", self._batches(groups), compute, no_progress):
            for unit, weights in zip(units, found["weights"].to(self.start.device), strict=True):
                of_target[self.edits[groups[unit][0]].answer] = weights
        return of_target

    def alone(
        self,
        usable: Sequence[int],
        of_target: Mapping[tuple[int, ...], Tensor],
        known: Collection[tuple[int, ...]],
        advance: Advance,
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """The edits in batches, with their neurons, leads and steps; each begins with its target's neuron."""
        counts = Counter(self.edits[i].answer for i in usable)
        lone = {answer for answer in of_target if counts[answer] == 1 and answer not in known}

        def compute(indices: list[int]) -> dict[str, Tensor]:
            answers = [self.edits[i].answer for i in indices]
            begin = torch.stack([of_target.get(answer, self.start) for answer in answers])  # (rows, L)
            own = torch.tensor([answer in lone for answer in answers], device=begin.device)
            return asdict(self._optimised_alone(self._prepared([[i] for i in indices]), begin, own))

        batches = [[usable[unit] for unit in batch] for batch in self._batches([[i] for i in usable])]
        return self._results("neurons", batches, compute, advance)

    def _batches(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Groups of edits, in batches by the examples of each."""
        units = [[row for index in group for row in self.asked.of_edit[index]] for group in groups]
        return batch_units(self.asked.examples, units, self.settings.batch_size)

    def _prepared(self, groups: Sequence[Sequence[int]]) -> Rows:
        """All examples of groups of edits; each group has a neuron."""
        asked, device = self.asked, self.start.device
        owned = [
            (row, number) for number, group in enumerate(groups) for index in group for row in asked.of_edit[index]
        ]
        indices = [row for row, _ in owned]
        batch = prepare(self.backbone, asked.examples, indices, self.settings.positions, self.pad_id)
        neuron_of = torch.tensor([number for _, number in owned], device=device)  # (rows,)
        return Rows(batch, neuron_of, torch.tensor([asked.counted[row] for row in indices], device=device))

    def _results(
        self,
        name: str,
        batches: list[list[int]],
        compute: Callable[[list[int]], dict[str, Tensor]],
        advance: Advance,
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Every batch with its result; this process's own ones are computed first."""
        jobs = [(f"{name}-{number:05}", batch) for number, batch in enumerate(batches)]
        for job, batch in self.processes.own(jobs) if self.processes.count > 1 else ():
            self.keep(job, partial(compute, batch))
            advance(len(batch))
        self.processes.wait()
        for number, (job, batch) in enumerate(jobs):
            yield batch, self.keep(job, partial(compute, batch))
            if self.processes.count == 1 or number % self.processes.count != self.processes.rank:
                advance(len(batch))

    def _optimised_together(self, groups: Sequence[Sequence[int]]) -> Tensor:
        """One neuron for each group of edits, as it was when it served all of them, or at last: (groups, L)."""
        rows = self._prepared(groups)
        weights, begin = torch.zeros(len(groups), self.backbone.weight_size), self.start.repeat(len(groups), 1)
        with self.backbone.plain_attention():
            for found in optimise(self.backbone, rows, begin, self.settings):
                weights[found.neurons.cpu()] = found.weights.cpu()
        return weights

    def _optimised_alone(self, rows: Rows, begin: Tensor, own: Tensor) -> Collected:
        """One neuron for each edit, `begin` (edits, L) where that serves it; edits that fail start afresh.

        own: bool (edits,), true where that was optimised on the edit alone: further formats were worked on already.
        """
        backbone, settings, edits = self.backbone, self.settings, len(begin)
        weights = begin.cpu().clone()
        with torch.no_grad():
            neurons = NeuronWeights.from_vectors(begin[rows.neuron_of], backbone.hidden_size)
            of_rows = answer_leads(answer_logits(backbone, rows.batch, neurons), rows.batch.labels)  # (rows,)
        leads, weakest = rows.leads(of_rows, edits).cpu(), rows.weakest(of_rows, edits).cpu()  # (edits,), (edits,)
        steps = torch.zeros(edits, dtype=torch.long)
        further = torch.where(own[rows.neuron_of], -math.inf, 0.0)  # (rows,)
        still = ~rows.lead_by(of_rows, edits, settings.shared_margin, further).cpu()  # (edits,)
        for attempt in range(settings.retries + 1):
            if not still.any():
                break
            effort = replace(settings, steps=settings.steps * 2**attempt)
            left = still.nonzero()[:, 0]
            first = begin[left.to(begin.device)] if attempt == 0 else self.start.repeat(len(left), 1)
            with backbone.plain_attention():
                for found in optimise(backbone, rows.only(still.to(begin.device)), first, effort):
                    done, lead = left[found.neurons.cpu()], found.leads.cpu()
                    better = _better(found, leads[done], weakest[done])
                    weights[done[better]], leads[done[better]] = found.weights.cpu()[better], lead[better]
                    weakest[done[better]] = found.weakest.cpu()[better]
                    steps[done] += found.step
            still = leads <= 0
        return Collected(weights, leads, steps)


def _better(found: Found, leads: Tensor, weakest: Tensor) -> Tensor:
    """True where a neuron is better than the one before, whose leads and weakest rows are given: bool (neurons,).

    One that fails is never better than one that does not.
    """
    lead = found.leads.cpu()
    return torch.where((leads > 0) & (lead > 0), found.weakest.cpu() > weakest, lead > leads)


@torch.no_grad()
def answer_leads_of(
    backbone: Backbone, batches: Iterable[Prepared], weights: Tensor, advance: Advance = no_progress
) -> Tensor:
    """Smallest answer lead of every edit with the given weights (edits, L): float32 (edits,), on the CPU.

    0 for an edit that is in none of the batches.
    """
    leads = torch.zeros(len(weights))
    for batch in batches:
        neurons = NeuronWeights.from_vectors(weights[batch.indices], backbone.hidden_size)
        leads[batch.indices] = answer_leads(answer_logits(backbone, batch, neurons), batch.labels).cpu()
        advance(len(batch))
    return leads
