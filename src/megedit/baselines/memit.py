"""MEMIT: many edits at once, written into the output matrices of a range of FFNs.

Source: Meng et al. 2023, Mass-Editing Memory in a Transformer (arXiv 2210.07229). With the keys K of the edits in a
layer, the residuals R that are still missing at the last layer, divided among the layers left, and C the second moment
of keys in text, each layer gets (eq. 14 and algorithm 1)

    Delta = R K^T (lambda C + K K^T)^-1
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from megedit.baselines.locate import LocateSettings, Places, at_subject, places, second_moment, target_changes
from megedit.baselines.method import MatrixMethod, add_to
from megedit.edits import Edit
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class MemitSettings(LocateSettings):
    """MEMIT's, with those of its target values."""

    moment_weight: Annotated[float, "lambda: how much what the matrices do already counts against the edits"] = 15_000.0


class LocateAndEdit(MatrixMethod):
    """A method that finds target values at the last of some layers, and solves for a change of each layer's matrix."""

    settings: Any

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        layers = settings.layers(base)
        matrices = self.matrices(layers)
        found = places(base, edits)
        targets = self._targets(found, layers[-1], advance)  # (edits, d)
        for number, (layer, matrix) in enumerate(zip(layers, matrices, strict=True)):
            keys = at_subject(base, found, matrix, settings.batch_size, inputs=True)  # (edits, inputs)
            left = targets - self._state(found, layers[-1])  # (edits, d)
            residuals = left / self._divisor(len(layers) - number)
            add_to(matrix, self._change(layer, keys, residuals))
        advance(len(edits) - len(found.edits))

    def _targets(self, found: Places, layer: int, advance: Advance) -> Tensor:
        """The states that the edits should have at the subject's end behind a layer: float32 (edits, d)."""
        state = self._state(found, layer)
        module, length = self.base.layers[layer], state.norm(dim=1)
        (delta,) = target_changes(self.base, found, layer, [module], [length], self.settings, advance)
        return state + delta

    def _state(self, found: Places, layer: int) -> Tensor:
        """Their states there now: float32 (edits, d)."""
        return at_subject(self.base, found, self.base.layers[layer], self.settings.batch_size, inputs=False)

    def _divisor(self, layers_left: int) -> float:
        """By which the residual is divided in a layer, with so many of them to go."""
        return layers_left

    @abstractmethod
    def _change(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """The change (d, inputs) of a layer's matrix. keys: float32 (edits, inputs). residuals: float32 (edits, d)."""


class Memit(LocateAndEdit):
    """Weighted least squares."""

    name: ClassVar[str] = "memit"
    source: ClassVar[str] = "arXiv 2210.07229"
    settings_type: ClassVar[type[Any]] = MemitSettings

    def _change(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        return memit_change(
            keys, residuals, second_moment(self.base, layer, self.settings), self.settings.moment_weight
        )


def memit_change(keys: Tensor, residuals: Tensor, moment: Tensor, weight: float) -> Tensor:
    """Delta (d, inputs) with Delta (weight moment + K K^T) = R K^T, in double precision.

    keys: (edits, inputs). residuals: (edits, d). moment: (inputs, inputs).
    """
    keys, residuals = keys.double(), residuals.double()
    change: Tensor = torch.linalg.solve(weight * moment.double() + keys.T @ keys, keys.T @ residuals).T
    return change
