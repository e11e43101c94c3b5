"""Fine-tuning the output matrix of one FFN on the edits, in two recipes.

`FineTuning` is the baseline of MeG (arXiv 2512.14395, appendix): Adam on one layer until the loss is small.
`LocalFineTuning` is LocFT-BF (arXiv 2509.22072): breadth first, in epochs of shuffled mini-batches over all edits, at a
place in the model that the paper finds best. Both minimise -log p(target | prompt), the mean over the target's tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from megedit.baselines.method import (
    Base,
    Batch,
    MatrixMethod,
    Upper,
    answer_losses,
    batches,
)
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.lm.batches import Example
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class FineTuningSettings:
    """The training of one matrix."""

    depth: Annotated[float, "of the layer whose matrix is changed: 0 the first, 1 the last"] = 0.65
    epochs: Annotated[int, "passes over the edits at most"] = 25
    batch_size: Annotated[int, "edits a step"] = 32
    lr: Annotated[float, "AdamW learning rate"] = 5e-4
    weight_decay: Annotated[float, "of AdamW"] = 0.0
    stop: Annotated[float, "mean loss of a pass, in nats a token, that is small enough to stop"] = 1e-2


class FineTuning(MatrixMethod):
    """Adam on one matrix."""

    name: ClassVar[str] = "ft"
    source: ClassVar[str] = "arXiv 2512.14395, appendix"
    settings_type: ClassVar[type[FineTuningSettings]] = FineTuningSettings
    settings: FineTuningSettings

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        layer = self.base.layer_at(self.settings.depth)
        (matrix,) = self.matrices([layer])
        train(self.base, self.base.examples(edits), [matrix.weight], layer, self.settings, self.seed, advance)


class LocalFineTuning(FineTuning):
    """LocFT-BF."""

    name: ClassVar[str] = "locft-bf"
    source: ClassVar[str] = "arXiv 2509.22072"


def train(
    base: Base,
    examples: Sequence[Example],
    parameters: Sequence[Tensor],
    layer: int,
    settings: FineTuningSettings,
    seed: int,
    advance: Advance,
    further: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Train parameters of the base model, or of a hook in it, on examples, in epochs of shuffled mini-batches.

    layer: the lowest one with such parameters; those below it run once. advance: called with numbers that add up to
    that of the examples. further: a loss beside that of the answers, asked for behind the forward pass of each batch.
    Raises MegError where the loss diverges.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        upper = Upper(base, examples, layer, settings.batch_size)
        _train(base, examples, parameters, upper, settings, random.Random(seed), advance, further)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None


def _train(
    base: Base,
    examples: Sequence[Example],
    parameters: Sequence[Tensor],
    upper: Upper,
    settings: FineTuningSettings,
    rng: random.Random,
    advance: Advance,
    further: Callable[[Batch], Tensor] | None,
) -> None:
    optimizer, done = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay), 0
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for batch in batches(base, examples, settings.batch_size, rng):
            loss = answer_losses(upper.answer_logits(batch), batch.labels).mean()
            if further is not None:
                loss = loss + further(batch)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters)), strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses.append(loss.item())
        mean = sum(losses) / max(len(losses), 1)
        if not math.isfinite(mean):
            raise MegError(f"Training diverged: the loss of epoch {epoch} is {mean}; try a smaller learning rate.")
        share = len(examples) if mean < settings.stop else len(examples) * epoch // settings.epochs
        advance(share - done)
        done = share
        if mean < settings.stop:
            break
