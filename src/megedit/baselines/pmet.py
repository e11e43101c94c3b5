"""PMET: MEMIT with targets that are found for attention and FFN together, of which the FFN's are written.

Source: Li et al. 2024, PMET: Precise Model Editing in a Transformer (arXiv 2308.08742). Changes of the attention's
output and of the FFN's are optimised at once in the last layer that is changed, so that the FFN need not make up for
what the attention would do; the FFN's residual is divided by the square root of the number of layers left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from megedit.baselines.locate import Places, at_subject, target_changes
from megedit.baselines.memit import Memit, MemitSettings
from megedit.baselines.method import Base
from megedit.errors import MegError
from megedit.lm.structure import find_feed_forward
from megedit.runtime.callbacks import Advance


@dataclass(frozen=True)
class PmetSettings(MemitSettings):
    """PMET's, with those of its target values."""

    moment_weight: Annotated[float, "lambda: how much what the matrices do already counts against the edits"] = 6_000.0


class Pmet(Memit):
    """Weighted least squares towards the FFN's own target."""

    name: ClassVar[str] = "pmet"
    source: ClassVar[str] = "arXiv 2308.08742"
    settings_type: ClassVar[type[Any]] = PmetSettings

    def _targets(self, found: Places, layer: int, advance: Advance) -> Tensor:
        modules = [find_attention(self.base, layer), find_feed_forward(self.base.layers[layer]).exit]
        states = [
            at_subject(self.base, found, module, self.settings.batch_size, inputs=False).norm(dim=1)
            for module in modules
        ]
        _, delta = target_changes(self.base, found, layer, modules, states, self.settings, advance)
        return self._state(found, layer) + delta

    def _divisor(self, layers_left: int) -> float:
        return math.sqrt(layers_left)


def find_attention(base: Base, layer: int) -> nn.Module:
    """The attention of a decoder layer. Raises MegError where it is not told by its name."""
    found = [module for name, module in base.layers[layer].named_children() if "attn" in name or "attention" in name]
    modules = [
        module
        for module in found
        if any(True for _ in module.parameters()) and "norm" not in type(module).__name__.lower()
    ]
    if len(modules) != 1:
        raise MegError(
            f"PMET needs a layer with one attention, and {type(base.layers[layer]).__name__} has {len(modules)}."
        )
    return modules[0]
