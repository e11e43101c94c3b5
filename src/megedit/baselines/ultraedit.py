"""UltraEdit: one closed-form step for each batch of edits, from hidden states and gradients alone.

Source: Gu et al. 2025, UltraEdit (arXiv 2505.14679). Of every linear map that is edited, and every token of an answer,
the input h and the gradient g of the loss at its output make the feature [h, g]. It is normalised by the mean and the
standard deviation of all features so far, which each turn of edits updates (lifelong normalisation). With the
normalised h and g of a turn in rows,

    v = -eta |h|^2 g        and        Delta^T = (H^T H + I)^-1 H^T V
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from megedit.baselines.method import (
    Base,
    Batch,
    MatrixMethod,
    add_to,
    answer_logits,
    answer_losses,
    batch_of,
)
from megedit.edits import Edit
from megedit.lm.batches import IGNORED
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class UltraEditSettings:
    """The matrices that are edited, and the step."""

    first: Annotated[float, "depth of the first FFN whose output matrix is edited: 0 the first, 1 the last"] = 0.55
    last: Annotated[float, "depth of the last one"] = 0.8
    turn: Annotated[int, "edits that are made together"] = 100
    eta: Annotated[float, "size of the step"] = 1e-5
    batch_size: Annotated[int, "edits whose gradients are computed at a time"] = 32


class UltraEdit(MatrixMethod):
    """Ridge regression on normalised features, turn by turn."""

    name: ClassVar[str] = "ultraedit"
    source: ClassVar[str] = "arXiv 2505.14679"
    settings_type: ClassVar[type[Any]] = UltraEditSettings
    settings: UltraEditSettings

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        matrices = self.matrices(range(base.layer_at(settings.first), base.layer_at(settings.last) + 1))
        norms = [Normalisation() for _ in matrices]
        examples = base.examples(edits)
        usable = [i for i, example in enumerate(examples) if example.refused is None]
        for first in range(0, len(usable), settings.turn):
            turn = usable[first : first + settings.turn]
            parts: list[list[Tensor]] = [[] for _ in matrices]
            for start in range(0, len(turn), settings.batch_size):
                batch = batch_of(base, examples, turn[start : start + settings.batch_size])
                for part, rows in zip(parts, answer_features(base, batch, matrices), strict=True):
                    part.append(rows)
            for matrix, norm, part in zip(matrices, norms, parts, strict=True):
                rows = norm.add(torch.cat(part))  # (tokens, inputs + outputs)
                keys, gradients_ = rows.split([rows.shape[1] - base.hidden_size, base.hidden_size], 1)
                add_to(matrix, ultraedit_change(keys, gradients_, settings.eta))
            advance(len(turn))
        advance(len(edits) - len(usable))


class Normalisation:
    """The mean and variance of all rows seen so far (Chan et al. 1983, for batches)."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> Tensor:
        """Take in rows, float32 (rows, size), and give them normalised, in the same shape."""
        count, mean = len(rows), rows.mean(0)
        total, step = self._count + count, mean - self._mean
        self._squares = self._squares + (rows - mean).square().sum(0) + step.square() * self._count * count / total
        self._mean, self._count = self._mean + step * count / total, total
        return self.normalised(rows)

    def normalised(self, rows: Tensor) -> Tensor:
        """Rows, float32 (rows, size), by the mean and deviation so far, in the same shape."""
        deviation = (self._squares / max(self._count - 1, 1)).sqrt()
        return (rows - self._mean) / (deviation + 1e-6)


def ultraedit_change(keys: Tensor, gradients: Tensor, eta: float) -> Tensor:
    """Delta (outputs, inputs) with (H^T H + I) Delta^T = H^T V, in double precision.

    keys: H (tokens, inputs). gradients: (tokens, outputs); V = -eta |h|^2 g.
    """
    keys, gradients = keys.double(), gradients.double()
    values = -eta * keys.square().sum(1, keepdim=True) * gradients  # (tokens, outputs)
    left = keys.T @ keys + torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    change: Tensor = torch.linalg.solve(left, keys.T @ values).T
    return change


def answer_features(base: Base, batch: Batch, matrices: Sequence[nn.Module]) -> list[Tensor]:
    """The features of linear maps at the columns from which the answers' tokens are predicted.

    Returns float32 (tokens, inputs + outputs) for each: the input, and the gradient at the output of the sum of the
    rows' losses.
    """
    with features(base.model, matrices) as found:
        loss = answer_losses(answer_logits(base.model, batch), batch.labels).sum()
        gradients = torch.autograd.grad(loss, [output for _, output in found])
    width, wanted = batch.ids.shape[1], batch.labels.shape[1]
    chosen = torch.zeros_like(batch.mask, dtype=torch.bool)  # (rows, columns)
    chosen[:, width - wanted - 1 : width - 1] = batch.labels != IGNORED
    at = chosen.flatten()  # (rows * columns,), as some models flatten their states, too
    return [
        torch.cat([entered.flatten(0, -2)[at], gradient.flatten(0, -2)[at]], 1).float()
        for (entered, _), gradient in zip(found, gradients, strict=True)
    ]


@contextmanager
def features(model: nn.Module, matrices: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within the context, keep the input of linear maps, and their output, from which gradients are taken."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.detach().requires_grad_(True) if not output.requires_grad else output
        found.append((args[0].detach(), output))
        return output

    with ExitStack() as context:
        for matrix in matrices:
            context.callback(matrix.register_forward_hook(keep).remove)
        yield found
