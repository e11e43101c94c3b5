"""Knowledge-weight collection: for every edit, the neuron that makes the frozen model give its target.

Source: MeG (arXiv 2512.14395), section 3.3. What differs from the paper's recipe:

- Edits with the same target share a neuron where they can. It is optimised on a few of them together; an edit that it
  does not serve is optimised alone, from there. Such a neuron says the target whatever was asked, so it is robust to
  other wordings, and a generator has far fewer neurons to tell apart.
- A neuron is optimised on several examples of its edit at once: its prompt and wordings in the adapter's template, in
  all of which it has to lead, and its prompt in a few other formats, which it is worked on for but does not fail by.
- Many neurons are optimised at a time (optimise.py). Everything below the neuron and, when it acts from the last prompt
  token on, the keys and values of all earlier positions are computed once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from megedit.lm.backbone import Backbone
from megedit.lm.batches import SHORT_ANSWER, Example, Prepared, batch_units, prepare
from megedit.neuron import NeuronWeights
from megedit.optimise import Rows, answer_leads, answer_logits, optimise, shared_start
from megedit.runtime.callbacks import Advance, Keep, keep_nothing, no_progress
from megedit.runtime.checkpoint import State
from megedit.runtime.processes import ALONE, Processes
from megedit.settings import CollectionSettings as CollectionSettings

START_SAMPLE = 64  # examples whose mean is the neuron that all start from
ON_PROCESSOR, FEWEST, MOST = 256, 32, 1024  # rows of a batch
KEPT_STATES, KEPT_INNER, KEPT_LOGITS = 20, 3, 3  # tensors of each width that a step keeps for its backward pass
FLOAT_BYTES = 4


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


def prepare_all(
    backbone: Backbone, examples: Sequence[Example], settings: CollectionSettings, pad_id: int
) -> Iterator[Prepared]:
    """All examples that have an answer in batches of similar length, one batch in memory at a time."""
    usable = _usable(examples)
    for batch in batch_units(examples, [[i] for i in usable], rows_at_once(backbone, settings)):
        yield prepare(backbone, examples, [usable[unit] for unit in batch], settings.positions, pad_id)


def rows_at_once(backbone: Backbone, settings: CollectionSettings) -> int:
    """The rows of a batch: as they are set or, on a GPU, as many as take a fifth of its memory.

    A processor is as fast with few. It is the memory that the GPU has and not what is free, so that a run that goes on
    has the batches that it began with.
    """
    if settings.batch_size:
        return settings.batch_size
    if backbone.device.type != "cuda":
        return ON_PROCESSOR
    memory: int = torch.cuda.get_device_properties(backbone.device).total_memory
    return rows_in(memory // 5, backbone)


def rows_in(memory: int, backbone: Backbone) -> int:
    """The rows, a power of two, whose activations above the neuron fit into so many bytes."""
    config = backbone.model.config.get_text_config()
    wide = KEPT_STATES * config.hidden_size + KEPT_INNER * getattr(config, "intermediate_size", 4 * config.hidden_size)
    layers = len(backbone.layers) - backbone.layer
    numbers = SHORT_ANSWER * (layers * wide + KEPT_LOGITS * config.vocab_size)  # of a row
    rows = memory // (FLOAT_BYTES * numbers)
    return max(FEWEST, min(MOST, 1 << int(math.log2(max(rows, 1)))))


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
    run.alone(usable, run.shared(usable, known), known, result, advance)
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

        for units, found in self._results("shared", self._group_batches(groups), compute):
            for unit, weights in zip(units, found["weights"].to(self.start.device), strict=True):
                of_target[self.edits[groups[unit][0]].answer] = weights
        return of_target

    def alone(
        self,
        usable: Sequence[int],
        of_target: Mapping[tuple[int, ...], Tensor],
        known: Collection[tuple[int, ...]],
        result: Collected,
        advance: Advance,
    ) -> None:
        """Find the neuron of each edit, and write it into the result: its target's, or one optimised on it alone.

        What an attempt leaves over is put into batches anew: few edits are left, and many small batches would take as
        many steps as full ones.
        """
        counts = Counter(self.edits[i].answer for i in usable)
        lone = {answer for answer in of_target if counts[answer] == 1 and answer not in known}
        weakest = torch.zeros(len(self.edits))

        def begin(indices: Sequence[int]) -> Tensor:
            return torch.stack([of_target.get(self.edits[i].answer, self.start) for i in indices])  # (edits, L)

        def check(indices: list[int]) -> dict[str, Tensor]:
            own = torch.tensor([self.edits[i].answer in lone for i in indices], device=self.start.device)
            return self._checked(self._prepared([[i] for i in indices]), begin(indices), own)

        left: list[int] = []
        for indices, found in self._results("served", self._batches(usable), check, advance):
            result.weights[indices] = begin(indices).cpu()
            result.leads[indices], weakest[indices] = found["leads"], found["weakest"]
            left += [i for i, done in zip(indices, found["done"].tolist(), strict=True) if not done]
        for attempt in range(self.settings.retries + 1):
            effort = replace(self.settings, steps=self.settings.steps * 2**attempt)

            def optimised(indices: list[int], attempt: int = attempt, effort: CollectionSettings = effort) -> State:
                first = self.start.repeat(len(indices), 1) if attempt else begin(indices)
                found = self._optimised_alone(self._prepared([[i] for i in indices]), first, effort)
                return found | {"done": (found["leads"] > 0) | (result.leads[indices] > 0)}

            for indices, found in self._results(f"alone-{attempt}", self._batches(left), optimised, advance):
                rows = torch.tensor(indices)
                better = _better(found["leads"], found["weakest"], result.leads[rows], weakest[rows])
                chosen = rows[better]
                result.weights[chosen], result.leads[chosen] = found["weights"][better], found["leads"][better]
                weakest[chosen] = found["weakest"][better]
                result.steps[rows] += found["steps"].long()
            left = [i for i in left if result.leads[i] <= 0]
        if left:
            advance(len(left))

    def _batches(self, edits: Sequence[int]) -> list[list[int]]:
        """Edits in batches by the examples of each."""
        return [[edits[unit] for unit in batch] for batch in self._group_batches([[i] for i in edits])]

    def _group_batches(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Groups of edits in batches by the examples of each; indices of the groups."""
        units = [[row for index in group for row in self.asked.of_edit[index]] for group in groups]
        return batch_units(self.asked.examples, units, rows_at_once(self.backbone, self.settings))

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
        compute: Callable[[list[int]], State],
        advance: Advance = no_progress,
    ) -> Iterator[tuple[list[int], State]]:
        """Every batch with its result; this process's own ones are computed first.

        A result may say which of the edits are `done`, bool (edits,).
        """

        def report(found: State) -> None:
            if "done" in found and (count := int(found["done"].sum())):
                advance(count)

        jobs = [(f"{name}-{number:05}", batch) for number, batch in enumerate(batches)]
        for job, batch in self.processes.own(jobs) if self.processes.count > 1 else ():
            report(self.keep(job, partial(compute, batch)))
        self.processes.wait()
        for number, (job, batch) in enumerate(jobs):
            found = self.keep(job, partial(compute, batch))
            yield batch, found
            if self.processes.count == 1 or number % self.processes.count != self.processes.rank:
                report(found)

    def _optimised_together(self, groups: Sequence[Sequence[int]]) -> Tensor:
        """One neuron for each group of edits, as it was when it served all of them, or at last: (groups, L)."""
        rows = self._prepared(groups)
        weights, begin = torch.zeros(len(groups), self.backbone.weight_size), self.start.repeat(len(groups), 1)
        with self.backbone.plain_attention():
            for found in optimise(self.backbone, rows, begin, self.settings):
                weights[found.neurons.cpu()] = found.weights.cpu()
        return weights

    def _checked(self, rows: Rows, begin: Tensor, own: Tensor) -> State:
        """Check whether neurons that are there, `begin` (edits, L), serve their edits, and by what they lead.

        own: bool (edits,), true where that was optimised on the edit alone: further formats were worked on already.
        """
        edits = len(begin)
        with torch.no_grad():
            neurons = NeuronWeights.from_vectors(begin[rows.neuron_of], self.backbone.hidden_size)
            leads = answer_leads(answer_logits(self.backbone, rows.batch, neurons), rows.batch.labels)  # (rows,)
        further = torch.where(own[rows.neuron_of], -math.inf, 0.0)  # (rows,)
        done = rows.lead_by(leads, edits, self.settings.shared_margin, further)  # (edits,)
        found = {"leads": rows.leads(leads, edits), "weakest": rows.weakest(leads, edits), "done": done}
        return {name: of.cpu() for name, of in found.items()}

    def _optimised_alone(self, rows: Rows, begin: Tensor, effort: CollectionSettings) -> State:
        """One neuron for each edit, optimised from `begin` (edits, L)."""
        weights, edits = begin.cpu().clone(), len(begin)
        leads, weakest, steps = torch.zeros(edits), torch.zeros(edits), torch.zeros(edits, dtype=torch.long)
        with self.backbone.plain_attention():
            for found in optimise(self.backbone, rows, begin, effort):
                done = found.neurons.cpu()
                weights[done], steps[done] = found.weights.cpu(), found.step
                leads[done], weakest[done] = found.leads.cpu(), found.weakest.cpu()
        return {"weights": weights, "leads": leads, "weakest": weakest, "steps": steps}


def _better(leads: Tensor, weakest: Tensor, before: Tensor, weakest_before: Tensor) -> Tensor:
    """True where neurons are better than those before, by their leads and weakest rows, each (edits,): bool (edits,).

    One that fails is never better than one that does not.
    """
    return torch.where((before > 0) & (leads > 0), weakest > weakest_before, leads > before)


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
