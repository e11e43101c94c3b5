"""Files of tensors: safetensors, half precision, matrices in eight bits a number where that is enough.

A matrix in eight bits is stored as int8 with one float16 scale a row, the scale under the name of the matrix followed
by `.scale`. Rounding a second time changes nothing: what is measured on a stage's stored result holds for what ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megedit.runtime.files import replacing

SCALE = ".scale"


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float matrices as int8 with a float16 scale a row, everything else in float16."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float().cpu()
        if values.ndim != 2:
            packed[name] = values.half().contiguous()
            continue
        scale = (values.abs().amax(1, keepdim=True) / 127).clamp(min=2**-24).half()
        packed[name] = (values / scale.float()).round().clamp(-127, 127).to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`, up to rounding: float32 tensors. Raises KeyError when a scale is missing."""
    return {
        name: tensor.float() * stored[name + SCALE].float() if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(SCALE) or name.removesuffix(SCALE) not in stored
    }


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, packed: bool = False) -> None:
    """Write tensors in half precision, or packed, whole or not at all."""
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(pack(tensors) if packed else half, partial)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors as float32, whichever way they were written."""
    return unpack(load_file(path))
