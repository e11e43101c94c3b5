"""Checks of generated neurons: whether they make the model give the answers of their edits.

To ask the model costs a forward pass of its upper layers for each edit, and to compare a generated neuron with the
collected one costs nothing. The further off it is, the more likely it fails. So where most are far off they are not
asked, and after training they are asked worst first, until they answer, and a sample of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from megedit.collect import answer_leads_of
from megedit.generator import WeightGenerator, far_off
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Prepared

ANSWERED_LEAD = 1.0  # logits; a generated neuron counts when its answer leads by this, well above bfloat16 noise
ASKED_FROM = 0.97  # share of neurons that are not far off, from which it is worth asking
FIRST_SHARE, LEAST = 0.1, 512  # of the vectors, and how many at least, that are asked at first, and as a sample


def answer_check(
    backbone: Backbone, batches: Iterable[Prepared], weights: Tensor, vectors: Tensor
) -> Callable[[WeightGenerator], float]:
    """A function that gives the share of these edits that a generator answers, sampled for their vectors.

    weights: the collected neurons, float32 (edits, L). vectors: float32 (edits, C). While many generated neurons are
    far off, it is the share of the others. Where there are no edits, the share is 1.
    """
    prepared = list(batches)

    def answered(generator: WeightGenerator) -> float:
        if not prepared:
            return 1.0
        near = 1 - float(far_off(generator, weights, vectors).float().mean())
        if near < ASKED_FROM:
            return near
        leads = answer_leads_of(backbone, prepared, generator.sample(vectors))
        return float((leads >= ANSWERED_LEAD).float().mean())

    return answered


def leads_worst_first(missed: Tensor, leads_of: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """The leads of generated neurons, infinite where they were not asked: float32 (vectors,).

    missed: float32 (vectors,), how far each is off. leads_of: gives the leads of some, int64 (n,) -> float32 (n,).
    Asked are the worst, in parts that grow until in the better half of one all answer, and a sample of the rest; all of
    them where one of the sample does not answer.
    """
    leads = torch.full((len(missed),), torch.inf)
    order = missed.argsort(descending=True)  # (vectors,)
    first = size = max(LEAST, round(FIRST_SHARE * len(order)))
    done = 0
    while done < len(order):
        part = order[done : done + size]
        leads[part] = leads_of(part)
        done += len(part)
        if bool((leads[part[len(part) // 2 :]] >= ANSWERED_LEAD).all()):
            break
        size = done
    rest = order[done:][torch.randperm(len(order) - done, generator=torch.Generator().manual_seed(seed))]
    sample, others = rest[:first], rest[first:]
    if len(sample):
        leads[sample] = leads_of(sample)
        if len(others) and bool((leads[sample] < ANSWERED_LEAD).any()):
            leads[others] = leads_of(others)
    return leads
