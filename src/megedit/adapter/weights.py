"""The tensors of an adapter: encoder and seen texts, the model file, and neurons as the ledger keeps them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megedit.adapter.config import AdapterConfig
from megedit.adapter.folder import damaged, inside, write_config
from megedit.adapter.ledger import Ledger
from megedit.encoder import TextEncoder, shipped_encoder
from megedit.generator import WeightGenerator
from megedit.router.familiarity import FamiliarityNetwork
from megedit.runtime.cache import remembered_sha256
from megedit.runtime.device import first_device
from megedit.runtime.files import replacing, sha256_of
from megedit.runtime.shipped import ENCODER, SECOND_VERIFIER, VERIFIER, shipped
from megedit.runtime.tensors import load_tensors, save_tensors

_MODEL_NAME = re.compile(r"model-\d+\.safetensors")


def write_unchanging(folder: Path, config: AdapterConfig, encoder: TextEncoder, seen: Tensor) -> None:
    """Write into a new folder what never changes again: all but ledger, model file and card.

    The verifiers are the shipped ones. Of the encoder, where it is the shipped one, its changes are written alone.

    seen: int64 (texts,), sorted, `text_key` of every text that encoder and router were tuned on.
    """
    with replacing(folder / "seen.safetensors") as partial:
        save_file({"keys": seen}, partial)
    if config.settings.encoder.shipped:
        shutil.copyfile(shipped(ENCODER), folder / ENCODER)
    else:
        encoder.save(folder / "encoder")
    if config.calibration.rule == "verified":
        for name in (VERIFIER, SECOND_VERIFIER):
            shutil.copyfile(shipped(name), folder / name)
    write_config(folder, config)


def load_encoder(
    folder: Path, config: AdapterConfig, device: str | torch.device, dtype: torch.dtype | None = None
) -> TextEncoder:
    """An adapter's text encoder, for use only. Raises MegError where it is damaged."""
    if (folder / ENCODER).is_file():
        encoder = shipped_encoder(device, dtype, folder / ENCODER)
    else:
        encoder = TextEncoder(folder / "encoder", config.encoder_pooling, device, dtype)
    encoder.model.requires_grad_(False)
    return encoder


def verifier_of(folder: Path) -> Path:
    """The file of an adapter's verifier; the shipped one where it was made before there were any."""
    own = folder / VERIFIER
    return own if own.is_file() else shipped(VERIFIER)


def save_model(folder: Path, revision: int, network: FamiliarityNetwork, generator: WeightGenerator) -> tuple[str, str]:
    """Write familiarity network and generator, safely on the disk; returns the file's name and sha256."""
    tensors = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    tensors |= {f"router.{name}": tensor for name, tensor in network.state_dict().items()}
    path = folder / f"model-{revision:04}.safetensors"
    save_tensors(tensors, path, packed=True)
    return path.name, sha256_of(path)


def load_model(
    folder: Path, ledger: Ledger, config: AdapterConfig, device: str | torch.device, dtype: torch.dtype | None = None
) -> tuple[FamiliarityNetwork, WeightGenerator]:
    """Load what `save_model` wrote for the ledger's last revision.

    Raises MegError, KeyError, ValueError or RuntimeError where it is damaged.
    """
    name, sha256 = ledger.model
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a model file")
    if remembered_sha256(inside(folder, name)) != sha256:
        raise damaged(folder, name)
    tensors, device = load_tensors(folder / name), first_device(device)
    network = FamiliarityNetwork(config.encoder_size, config.settings.familiarity)
    network.load_state_dict(_part(tensors, "router."))
    generator = WeightGenerator(config.weight_size, config.encoder_size, config.settings.generator, dtype)
    generator.load_state_dict(_part(tensors, "generator."))
    return network.to(device).eval().requires_grad_(False), generator.to(device).eval().requires_grad_(False)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def to_bytes(neurons: Tensor) -> list[bytes]:
    """Neurons (n, L) as the ledger keeps them: each as L numbers in float16."""
    return [row.tobytes() for row in neurons.detach().half().cpu().contiguous().numpy()]


def from_bytes(neurons: Sequence[bytes], size: int) -> Tensor:
    """Neurons from the ledger: float32 (n, size). Raises ValueError when one has another length."""
    if any(len(neuron) != 2 * size for neuron in neurons):
        raise ValueError(f"a neuron has not the {size} numbers of this adapter's")
    joined = torch.frombuffer(bytearray(b"".join(neurons)), dtype=torch.float16) if neurons else torch.zeros(0)
    return joined.float().view(-1, size)  # (n, size)
