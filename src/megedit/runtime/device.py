"""The device and the number format to compute in: bfloat16 where it is fast, otherwise float32.

A processor without bfloat16 emulates it, an order of magnitude slower than it computes in float32. One with AVX512-BF16
alone has it and is still slower: products of SmolLM2's and MiniLM's sizes ran at 165 GFLOPS in bfloat16 and at 320 in
float32 (two cores). AMX and the GPUs that have bfloat16 are several times faster in it. The choice is not measured, so
that it is the same each time a run goes on.
"""

from __future__ import annotations

import torch

from megedit.errors import MegError

SPREAD = "auto"  # a device: the base model is spread over all GPUs, and over memory where they are too small


def first_device(device: str | torch.device) -> torch.device:
    """The device itself or, where the base model is spread, the one where everything else goes.

    Raises MegError when nothing can be computed on it here.
    """
    if str(device) == SPREAD:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch asserts where it has no CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise MegError(f"The device {str(device)!r} cannot be used here ({reason}); choose another.") from error
    return found


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the processor (by AMX) or the GPU is fast in it, otherwise float32.

    Raises MegError as `first_device`.
    """
    device = first_device(device)
    fast = False
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def mixed_precision(device: str | torch.device, dtype: torch.dtype | None = None) -> torch.autocast:
    """A context in which float32 networks multiply their matrices in `dtype`, by default `default_dtype(device)`."""
    device, dtype = torch.device(device), dtype or default_dtype(device)
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)


def hold_cast(network: torch.nn.Module, device: str | torch.device, dtype: torch.dtype | None = None) -> None:
    """Hold the matrices of a network in the format to which `mixed_precision` would cast them at every use.

    Its results stay the same; it is for a network that is used only, neither trained nor saved any more.
    """
    dtype = dtype or default_dtype(device)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
