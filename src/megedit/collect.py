"""Knowledge-weight collection: for every edit, the neuron that makes the frozen model give its target.

Source: MeG (arXiv 2512.14395), section 3.3. What differs from the paper's recipe is only how it is computed: many
edits at a time, one (k, b, v) per row; everything below the neuron and, when the neuron acts from the last prompt
token on, the keys and values of all earlier positions are computed once; a row leaves the batch as soon as every
token of its answer leads all others by a margin.

    columns:      context (untouched)        |  last prompt token, answer tokens but the last
    computed:     once: keys and values      |  prefix once, suffix at every step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from megedit.backbone import Backbone, Split
from megedit.neuron import NeuronWeights, neuron_output

IGNORED = -100  # label of a position that holds no answer token

Span = Literal["answer", "all"]


@dataclass(frozen=True)
class CollectionSettings:
    """How neurons are collected. Defaults: measured on SmolLM2-135M-Instruct (docs/benchmarks.md)."""

    span: Span = field(default="answer", metadata={"help": "act from the last prompt token on, or on all positions"})
    margin: float = field(default=4.0, metadata={"help": "logits by which each answer token must lead to stop"})
    steps: int = field(default=40, metadata={"help": "optimisation steps at most"})
    key_lr: float = field(default=0.015, metadata={"help": "Adam learning rate of k and b"})
    value_lr: float = field(default=1.0, metadata={"help": "Adam learning rate of v"})
    batch_size: int = field(default=128, metadata={"help": "edits optimised at a time"})
    retries: int = field(default=2, metadata={"help": "further attempts, each with twice the steps"})

    def __post_init__(self) -> None:
        if self.span not in ("answer", "all"):
            raise ValueError(f"span must be 'answer' or 'all', not {self.span!r}")
        for name in ("steps", "batch_size", "key_lr", "value_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, not {self.retries}")


@dataclass(frozen=True)
class Example:
    """One edit as token ids: the prompt as the model will see it, and the answer with its end-of-text token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A batch of examples up to the point where the neuron comes in. labels: int64 (rows, answer positions)."""

    indices: Tensor  # int64 (rows,), on the CPU: which examples these rows are
    split: Split
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> Prepared:
        return Prepared(self.indices[rows.cpu()], self.split[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)


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


def prepare(
    backbone: Backbone, examples: Sequence[Example], indices: Sequence[int], span: Span, pad_id: int
) -> Prepared:
    """Run the frozen part for the chosen examples.

    Columns: the tokens all prompts begin with (the template, run as one row), padding, the rest of each prompt, its
    answer, padding.
    """
    chosen = [examples[i] for i in indices]
    shared = common_prefix([e.prompt[:-1] for e in chosen]) if span == "answer" else 0
    width = max(len(e.prompt) for e in chosen)
    answer_width = max(len(e.answer) for e in chosen)
    rows = len(chosen)
    ids = torch.full((rows, width + answer_width - 1), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full((rows, answer_width), IGNORED)
    for row, example in enumerate(chosen):
        text = example.prompt + example.answer[:-1]
        first = width - len(example.prompt) + shared
        ids[row, :shared] = torch.tensor(text[:shared])
        ids[row, first : first + len(text) - shared] = torch.tensor(text[shared:])
        mask[row, :shared] = 1
        mask[row, first:] = 1  # what is right of a shorter answer is seen by nothing that counts
        labels[row, : len(example.answer)] = torch.tensor(example.answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids, mask, positions, labels = (t.to(backbone.device) for t in (ids, mask, positions, labels))

    def block(first: int, last: int, rows: int = rows) -> dict[str, Tensor]:
        columns = slice(first, last)
        return {
            "input_ids": ids[:rows, columns],
            "position_ids": positions[:rows, columns],
            "attention_mask": mask[:rows, :last],
        }

    cache = None
    untouched = width - 1 if span == "answer" else 0
    if shared:
        cache = backbone.context(block(0, shared, rows=1))
        cache.batch_repeat_interleave(rows)
    if untouched > shared:
        cache = backbone.context(block(shared, untouched), cache)
    return Prepared(torch.tensor(indices), backbone.prefix(block(untouched, ids.shape[1]), cache), labels)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    low, high = (
        min(map(tuple, sequences)),
        max(map(tuple, sequences)),
    )  # every other one lies between them in lexicographic order
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def shared_start(backbone: Backbone, batches: Sequence[Prepared]) -> Tensor:
    """The neuron all edits start from: k along the mean MLP input at the last prompt token, k.h = 1; v = 0.

    Returns float32 (2d or 2d + 1,).
    """
    inputs = [batch.split.mlp_input[:, -batch.labels.shape[1]].float() for batch in batches]
    mean = torch.cat(inputs).mean(0)
    start = torch.zeros(backbone.weight_size, device=mean.device)
    start[: backbone.hidden_size] = mean / mean.square().sum()
    return start


def answer_logits(backbone: Backbone, batch: Prepared, weights: NeuronWeights | None) -> Tensor:
    """Logits of the answer positions with these neurons: (rows, answer positions, vocabulary), model's dtype."""
    added = None if weights is None else neuron_output(batch.split.mlp_input, weights, backbone.activation)
    return backbone.suffix(batch.split, added, batch.labels.shape[1])


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


def collect_batch(
    backbone: Backbone, batch: Prepared, start: Tensor, settings: CollectionSettings
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Optimise one batch; yields (indices, weights, leads, step) for rows as they finish, all rows in the end.

    weights: float32 (rows, 2d or 2d + 1); leads: float32 (rows,).
    """
    d = backbone.hidden_size
    weights = start.repeat(len(batch), 1)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)  # Adam moments, row by row
    lr = torch.full_like(start, settings.key_lr)
    lr[-d:] = settings.value_lr
    for step in range(settings.steps + 1):
        weights.requires_grad_(True)
        last = step == settings.steps
        with torch.set_grad_enabled(not last):
            logits = answer_logits(backbone, batch, NeuronWeights.from_vectors(weights, d))
        lead = answer_leads(logits.detach(), batch.labels)
        done = (lead >= settings.margin) | last
        if done.any():
            yield batch.indices[done.cpu()], weights[done].detach(), lead[done], step
            if done.all():
                return
        (gradient,) = torch.autograd.grad(logits, weights, loss_gradient(logits.detach(), batch.labels))
        weights = weights.detach()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        weights = weights - cosine * lr * update
        if done.any():
            keep = (~done).nonzero()[:, 0]
            batch, weights, first, second = batch[keep], weights[keep], first[keep], second[keep]


def prepare_all(
    backbone: Backbone,
    examples: Sequence[Example],
    settings: CollectionSettings,
    pad_id: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Prepared]:
    """All examples in batches of similar length; `progress` is called with the number of examples just prepared."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].answer), len(examples[i].prompt)))
    batches = []
    for first in range(0, len(order), settings.batch_size):
        batches.append(prepare(backbone, examples, order[first : first + settings.batch_size], settings.span, pad_id))
        progress(len(batches[-1]))
    return batches


def collect(
    backbone: Backbone,
    batches: Sequence[Prepared],
    settings: CollectionSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Collect a neuron for every example of `prepare_all`; one that fails is tried again with more steps.

    What still fails has a lead of 0 or less in the result. progress: called with the number of edits just finished.
    """
    edits = sum(len(batch) for batch in batches)
    weights = torch.zeros(edits, backbone.weight_size)
    leads = torch.full((edits,), -math.inf)
    steps = torch.zeros(edits, dtype=torch.long)
    start = shared_start(backbone, batches)
    with backbone.plain_attention():
        for attempt in range(settings.retries + 1):
            effort = replace(settings, steps=settings.steps * 2**attempt)
            for batch in batches:
                open_rows = (leads[batch.indices] <= 0).nonzero()[:, 0]
                if not len(open_rows):
                    continue
                for indices, found, lead, step in collect_batch(backbone, batch[open_rows], start, effort):
                    better = lead.cpu() > leads[indices]
                    weights[indices[better]], leads[indices[better]] = found.cpu()[better], lead.cpu()[better]
                    steps[indices] += step
                    progress(len(indices) if attempt == 0 else 0)
    return Collected(weights, leads, steps)


@torch.no_grad()
def answer_leads_of(backbone: Backbone, batches: Sequence[Prepared], weights: Tensor) -> Tensor:
    """Smallest answer lead of every edit with the given weights (edits, L): float32 (edits,), on the CPU."""
    leads = torch.zeros(len(weights))
    for batch in batches:
        neurons = NeuronWeights.from_vectors(weights[batch.indices], backbone.hidden_size)
        leads[batch.indices] = answer_leads(answer_logits(backbone, batch, neurons), batch.labels).cpu()
    return leads
