"""Which device and number format to compute in: bfloat16 where the processor or GPU has it, otherwise float32.

A processor without bfloat16 emulates it, an order of magnitude slower than it computes in float32.
"""

from __future__ import annotations

import torch

SPREAD = "auto"  # a device: the base model is spread over all GPUs, and over memory where they are too small


def first_device(device: str | torch.device) -> torch.device:
    """The device itself or, where the base model is spread, the one where everything else goes."""
    if str(device) == SPREAD:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the processor or GPU computes in it natively, otherwise float32."""
    device = first_device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32


def mixed_precision(device: str | torch.device) -> torch.autocast:
    """A context in which float32 networks multiply their matrices in `default_dtype`."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=default_dtype(device) == torch.bfloat16)


def hold_cast(network: torch.nn.Module, device: str | torch.device) -> None:
    """Hold the matrices of a network in the format to which `mixed_precision` would cast them at every use.

    What it computes stays the same; it is for a network that is used only, neither trained nor saved any more.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(default_dtype(device))
