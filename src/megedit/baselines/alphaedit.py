"""AlphaEdit: MEMIT's change, kept to the null space of what should stay.

Source: Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing (arXiv 2410.02355). P projects onto the
eigenvectors of the second moment of keys in text whose eigenvalues are below a threshold (eq. 7), so that P k is nearly
0 for keys of text. For one batch of edits (eq. 13, without earlier ones)

    Delta = R K^T P (K K^T P + I)^-1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from megedit.baselines.locate import LocateSettings, second_moment
from megedit.baselines.memit import LocateAndEdit


@dataclass(frozen=True)
class AlphaEditSettings(LocateSettings):
    """AlphaEdit's, with those of its target values."""

    threshold: Annotated[float, "eigenvalue of the second moment below which a direction is free"] = 0.02
    ridge: Annotated[float, "weight of the change's own length"] = 10.0


class AlphaEdit(LocateAndEdit):
    """Least squares in the null space."""

    name: ClassVar[str] = "alphaedit"
    source: ClassVar[str] = "arXiv 2410.02355"
    settings_type: ClassVar[type[Any]] = AlphaEditSettings

    def _change(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        moment = second_moment(self.base, layer, self.settings)
        return alphaedit_change(keys, residuals, null_space(moment, self.settings.threshold), self.settings.ridge)


def null_space(moment: Tensor, threshold: float) -> Tensor:
    """The projection (inputs, inputs) onto the eigenvectors of a moment whose eigenvalues are below a threshold."""
    values, vectors = torch.linalg.eigh(moment.double())
    free = vectors[:, values < threshold]  # (inputs, free)
    projection: Tensor = free @ free.T
    return projection


def alphaedit_change(keys: Tensor, residuals: Tensor, projection: Tensor, ridge: float) -> Tensor:
    """Delta (d, inputs) with Delta (K K^T P + ridge I) = R K^T P, in double precision.

    keys: (edits, inputs). residuals: (edits, d). projection: (inputs, inputs).
    """
    keys, residuals = keys.double(), residuals.double()
    left = projection @ (keys.T @ keys) + ridge * torch.eye(len(projection), dtype=keys.dtype, device=keys.device)
    change: Tensor = torch.linalg.solve(left, projection @ (keys.T @ residuals)).T
    return change
