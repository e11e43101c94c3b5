"""The folder of an adapter: data that turns a base model into the edited one. Its format: docs/adapter-format.md.

    meg_config.json       base model, layer, template, settings, calibration, sha256 of what never changes
    ledger.db             every edit, its vector and collected neuron, and what was done when (ledger.py)
    model-NNNN.safetensors  familiarity network and weight generator as of revision NNNN (eight bits a number)
    fit.log               when each stage of the fit began and ended, and its warnings
    seen.safetensors      keys of the texts that encoder and router were tuned on, to refuse evaluating on them
    encoder/              the tuned text encoder (eight bits a number), its configuration and tokenizer
    README.md             model card

Nothing in it is code and nothing is unpickled. A folder is written under a temporary name and renamed; after that only
the ledger changes, and the model when edits are consolidated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megedit.adapter.ledger import Ledger
from megedit.adapter.sqlite import FILE as LEDGER_FILE
from megedit.collect import CollectionSettings
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.generator import GeneratorSettings, WeightGenerator
from megedit.lm.batches import Span
from megedit.lm.loading import resolve_copy
from megedit.lm.template import Template
from megedit.router.familiarity import FamiliarityNetwork, FamiliaritySettings
from megedit.router.router import Calibration
from megedit.runtime.device import first_device
from megedit.runtime.tensors import load_tensors, save_tensors

FORMAT_VERSION = 3
CONFIG = "meg_config.json"
LOG = "fit.log"
_NEEDED = ("seen.safetensors", "encoder/config.json", "encoder/weights.safetensors")
_HUB_FILES = (CONFIG, LEDGER_FILE, LOG, "*.safetensors", "README.md", "encoder/*")
_MODEL_NAME = re.compile(r"model-\d+\.safetensors")


@dataclass(frozen=True)
class AdapterConfig:
    """Everything about an adapter that is not a tensor or an edit."""

    base: str
    base_fingerprint: str
    layer: int
    hidden_size: int
    weight_size: int
    span: Span
    template: Template
    encoder_pooling: str
    encoder_size: int
    familiarity: FamiliaritySettings
    generator: GeneratorSettings
    calibration: Calibration
    settings: dict[str, Any]  # all settings of the fit, for the record
    record: dict[str, Any]  # seconds and peak memory of every stage, versions, source of the edits
    format_version: int = FORMAT_VERSION

    @property
    def collection(self) -> CollectionSettings:
        """How the neurons were collected."""
        values = self.settings["collection"]
        named = {"positions": values.get("span", "answer"), **values}  # format 3 of before wrote `span`
        return CollectionSettings(**_known(CollectionSettings, named))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AdapterConfig:
        """Raises KeyError, TypeError or ValueError when a field is missing or not valid."""
        values = _known(cls, values)
        return cls(
            **{
                **values,
                "template": Template(**values["template"]),
                "familiarity": FamiliaritySettings(**_known(FamiliaritySettings, values["familiarity"])),
                "generator": GeneratorSettings(**_known(GeneratorSettings, values["generator"])),
                "calibration": Calibration.from_json(values["calibration"]),
            }
        )


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of this dataclass's fields; others may have been written by another version."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def config_files(folder: Path) -> list[str]:
    """The files of an adapter that never change."""
    return list(json.loads((folder / CONFIG).read_text("utf-8"))["files"])


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter: one here, or the local copy of one on the Hugging Face Hub."""
    return resolve_copy(str(name), _HUB_FILES)


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter folder, after checking that every file is as it was written."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        version = int(values["format_version"])
        if version > FORMAT_VERSION:
            raise MegError(
                f"The adapter {folder} has format {version}, this version of MegEdit reads up to {FORMAT_VERSION}; "
                "upgrade MegEdit."
            )
        if version < FORMAT_VERSION:
            raise MegError(
                f"The adapter {folder} has format {version}, which this version of MegEdit no longer reads; "
                "fit it again."
            )
        if unlisted := [name for name in _NEEDED if name not in values["files"]]:
            raise ValueError(f"{unlisted[0]} is not listed")
        for name, expected in values["files"].items():
            if _sha256(inside(folder, name)) != expected:
                raise _damaged(folder, name)
        return AdapterConfig.from_json(values)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(str(error.filename)).name
        why = "is not an adapter" if missing == CONFIG else "is damaged"
        raise MegError(f"{folder} {why}: {missing} is missing.") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MegError(f"The adapter {folder} is damaged: {CONFIG} cannot be read ({error}).") from error


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter."""
    return (folder / CONFIG).is_file()


@contextmanager
def replacing_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when all went well and vanishes otherwise."""
    check_replaceable(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    except (OSError, SafetensorError) as error:
        raise MegError(f"{folder} could not be written ({error}); what was there before is untouched.") from error


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raise MegError unless `folder` is free, empty, or an adapter that may be overwritten."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_adapter(folder):
        raise MegError(f"{folder} is already there and is not an adapter; choose another folder.")
    if not overwrite:
        raise MegError(f"{folder} already holds an adapter; choose another folder or allow overwriting it.")


def write_unchanging(folder: Path, config: AdapterConfig, encoder: TextEncoder, seen: Tensor) -> None:
    """Write into an empty folder what never changes again: all but ledger, model and card."""
    save_file({"keys": seen}, folder / "seen.safetensors")
    encoder.save(folder / "encoder")
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
    text = json.dumps({**config.to_json(), "files": files}, indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def save_model(folder: Path, revision: int, network: FamiliarityNetwork, generator: WeightGenerator) -> tuple[str, str]:
    """Write familiarity network and generator, safely on the disk; returns the file's name and sha256."""
    tensors = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    tensors |= {f"router.{name}": tensor for name, tensor in network.state_dict().items()}
    path = folder / f"model-{revision:04}.safetensors"
    save_tensors(tensors, path, packed=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.name, _sha256(path)


def load_model(
    folder: Path, ledger: Ledger, config: AdapterConfig, device: str | torch.device
) -> tuple[FamiliarityNetwork, WeightGenerator]:
    """What `save_model` wrote for the ledger's last revision; KeyError, ValueError and the like where it is damaged."""
    name, sha256 = ledger.model
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a model file")
    if _sha256(inside(folder, name)) != sha256:
        raise _damaged(folder, name)
    tensors, device = load_tensors(folder / name), first_device(device)
    network = FamiliarityNetwork(config.encoder_size, config.familiarity)
    network.load_state_dict(_part(tensors, "router."))
    generator = WeightGenerator(config.weight_size, config.encoder_size, config.generator)
    generator.load_state_dict(_part(tensors, "generator."))
    return network.to(device).eval().requires_grad_(False), generator.to(device).eval().requires_grad_(False)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def inside(folder: Path, name: str) -> Path:
    """The file of that name, if it is in the folder; the Hub's cache keeps the files of a snapshot in `blobs`."""
    folder = folder.resolve()
    roots = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    path = folder / name
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise ValueError(f"{name} is outside the folder")
    return path


def _damaged(folder: Path, name: str) -> MegError:
    return MegError(
        f"The adapter {folder} is damaged: {name} is not as it was written; restore it from a copy or fit it again."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
