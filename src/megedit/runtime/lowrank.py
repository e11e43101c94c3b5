"""Low-rank changes to a network's matrices (LoRA, arXiv 2106.09685), in small files beside public weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

DOWN, UP = ".down", ".up"  # the factors of a matrix's change: up @ down


@torch.no_grad()
def apply_changes(network: nn.Module, changes: Mapping[str, Tensor]) -> None:
    """Add the changes of matrices, named NAME.down (rank, in) and NAME.up (out, rank), to NAME.weight (out, in).

    Raises KeyError or RuntimeError where they are not those of this network.
    """
    matrices = {name.removesuffix(DOWN) for name in changes if name.endswith(DOWN)}
    if unknown := set(changes) - {name + end for name in matrices for end in (DOWN, UP)}:
        raise KeyError(min(unknown))
    weights = dict(network.named_parameters())
    for name in matrices:
        weight = weights[f"{name}.weight"]
        weight.add_((changes[name + UP] @ changes[name + DOWN]).to(weight))
