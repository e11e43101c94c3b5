"""The adapter: one folder of data that turns a base model into the edited one. Its format: docs/adapter-format.md.

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
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.base import fingerprint, load_base, resolve_copy
from megedit.batches import Span
from megedit.collect import CollectionSettings
from megedit.edits import Edit
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.familiarity import Calibration, Enrolled, FamiliarityNetwork, FamiliaritySettings, Router
from megedit.files import write_whole
from megedit.generator import GeneratorSettings, WeightGenerator, anchored
from megedit.ledger import FILE as LEDGER_FILE
from megedit.ledger import EditRecord, Ledger, Status, reading
from megedit.precision import first_device
from megedit.template import Template
from megedit.tensors import load_tensors, save_tensors
from megedit.vectors import EditVectors

FORMAT_VERSION = 3
CONFIG = "meg_config.json"
LOG = "fit.log"
_NEEDED = ("seen.safetensors", "encoder/config.json", "encoder/weights.safetensors")
_HUB_FILES = (CONFIG, LEDGER_FILE, LOG, "*.safetensors", "README.md", "encoder/*")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
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
        return CollectionSettings(**self.settings["collection"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AdapterConfig:
        """Raises KeyError, TypeError or ValueError when a field is missing or not valid."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        return cls(
            **{
                **values,
                "template": Template(**values["template"]),
                "familiarity": FamiliaritySettings(**values["familiarity"]),
                "generator": GeneratorSettings(**values["generator"]),
                "calibration": Calibration.from_json(values["calibration"]),
            }
        )


@dataclass
class Adapter:
    """A loaded adapter, as its folder was at one revision.

    records: all edits of that revision. collected: the neurons, float32 (L,) by number of the edit, of the active edits
    whose answers the generator does not give. seen: int64 (texts,), sorted, `text_key` of every text that encoder and
    router were tuned on.
    """

    folder: Path
    revision: int
    config: AdapterConfig
    encoder: TextEncoder
    router: Router
    generator: WeightGenerator
    records: tuple[EditRecord, ...]
    collected: dict[int, Tensor]
    seen: Tensor

    @property
    def active(self) -> tuple[EditRecord, ...]:
        """The edits in force, with what became of them."""
        return tuple(record for record in self.records if record.status == "active")

    @property
    def active_edits(self) -> tuple[Edit, ...]:
        """The edits in force."""
        return tuple(record.edit for record in self.active)

    @cached_property
    def routed(self) -> tuple[EditRecord, ...]:
        """The edits that the router knows, the active and the removed, in the order of its vectors."""
        return tuple(record for record in self.records if record.status != "failed")

    @property
    def identity(self) -> str:
        """A digest of what decides its answers: base model, template, encoder, router, generator and edits."""
        digest = hashlib.sha256(json.dumps([self.config.base_fingerprint, asdict(self.config.template)]).encode())
        modules = (self.encoder.model, self.router.network, self.generator)
        tensors = [self.router.vectors.unpack(), *self.collected.values()]
        tensors += [tensor for module in modules for tensor in module.state_dict().values()]
        for tensor in tensors:
            digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.config.calibration.to_json(), asdict(self.generator.settings)]).encode())
        digest.update(json.dumps([[record.status, record.generated] for record in self.routed]).encode())
        return digest.hexdigest()

    def generate(self, vectors: Tensor, nearest: Tensor) -> Tensor:
        """Neurons for query vectors (float32 (queries, C)) whose nearest edits are these rows of the router's vectors
        (int64 (queries,)): float32 (queries, L)."""
        known = self.router.vectors[nearest]
        return self.generator.sample(anchored(vectors, known, self.generator.settings.anchor))

    def neurons(self, records: Sequence[EditRecord]) -> Tensor:
        """The collected neurons of edits, from the folder: float32 (edits, L). Raises KeyError where they are gone."""
        with reading(self.folder) as ledger:
            return ledger.neurons([record.number for record in records]).view(-1, self.config.weight_size)

    def load_base(
        self, name: str | None, dtype: torch.dtype | None, device: str | torch.device
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokenizer, from `name` where it was moved. Raises MegError when it is another one."""
        model, tokenizer = load_base(name or self.config.base, dtype=dtype, device=device)
        check_base(model, self.config)
        return model, tokenizer

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the adapter, as it is in its folder now, to the Hugging Face Hub; returns its address.

        options: those of `create_repo`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        address = api.create_repo(name, exist_ok=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            copy_adapter(self.folder, Path(folder) / "adapter")
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "adapter")
        return str(address)


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
    if _sha256(_inside(folder, name)) != sha256:
        raise _damaged(folder, name)
    tensors = load_tensors(folder / name)
    network = FamiliarityNetwork(config.encoder_size, config.familiarity)
    network.load_state_dict(_part(tensors, "router."))
    generator = WeightGenerator(config.weight_size, config.encoder_size, config.generator)
    generator.load_state_dict(_part(tensors, "generator."))
    return network.to(device).eval().requires_grad_(False), generator.to(device).eval().requires_grad_(False)


def load_adapter(name: str | Path, device: str | torch.device = "cpu") -> Adapter:
    """Load an adapter from a folder or, by name, from the Hugging Face Hub.

    Raises MegError when it is not an adapter, is damaged, or has a newer format than this version reads.
    """
    folder, device = find_adapter(name), first_device(device)
    config = read_config(folder)
    with reading(folder) as ledger:
        try:
            network, generator = load_model(folder, ledger, config, device)
            revision, records = ledger.revision, tuple(ledger.records())
            vectors = EditVectors.from_rows(ledger.vectors(), config.encoder_size).to(device)
            apart = [record.number for record in records if record.status == "active" and not record.generated]
            collected = dict(zip(apart, ledger.neurons(apart), strict=True))
            if any(weights.shape != (config.weight_size,) for weights in collected.values()):
                raise ValueError("a neuron has not the size of this adapter's")
            seen = load_file(folder / "seen.safetensors")["keys"]
        except FileNotFoundError as error:
            raise MegError(f"{folder} is damaged: {Path(str(error.filename)).name} is missing.") from error
        except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise MegError(
                f"The adapter {folder} is damaged ({error}); restore it from a copy or fit it again."
            ) from error
    encoder = TextEncoder(folder / "encoder", config.encoder_pooling, device)
    encoder.model.requires_grad_(False)
    enrolled = [
        Enrolled(record.edit.subject or None, record.generated, record.status == "removed", record.edit.prompt)
        for record in records
        if record.status != "failed"
    ]
    router = Router(network, vectors, enrolled, config.calibration)
    return Adapter(folder, revision, config, encoder, router, generator, records, collected, seen)


def check_base(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Raise MegError when an adapter was made for another base model than this."""
    if fingerprint(model) != config.base_fingerprint:
        raise MegError(
            f"This adapter was made for the base model {config.base} and does not fit the one given; "
            "load it with that base model, or fit a new adapter on this one."
        )


def copy_adapter(source: Path, folder: str | Path, overwrite: bool = False) -> None:
    """Copy an adapter's folder as it is now. An adapter that is already there is only replaced with `overwrite`.

    Raises MegError when the folder is there and is not an adapter or may not be replaced, or the disk is full.
    """
    read_config(source)
    with replacing_folder(Path(folder), overwrite) as partial, reading(source) as ledger:
        for name in (CONFIG, *config_files(source), ledger.model[0]):
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(_inside(source, name), partial / name)
        ledger.copy(partial)
        write_card(partial)


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
            if _sha256(_inside(folder, name)) != expected:
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


def write_card(folder: Path) -> None:
    """Write the README of an adapter folder."""
    config = read_config(folder)
    with reading(folder) as ledger:
        counts, log = ledger.counts(), ledger.operations()
        failed = [record.edit.id for record in ledger.records(status="failed")]
    card = model_card(config, counts, failed, log[0].source, log[-1].revision)
    write_whole(folder / "README.md", card)


def model_card(
    config: AdapterConfig, counts: Mapping[Status, int], failed: Sequence[str], source: str, revision: int
) -> str:
    """The README of an adapter: how many edits have which status, which have failed, where the first came from."""
    decision = config.calibration.decision
    stages = "\n".join(
        f"| {stage} | {cost['seconds']:.0f} | {cost['peak_memory_mb']:.0f} |"
        for stage, cost in config.record.get("stages", {}).items()
    )
    hub_name = config.base.partition("@")[0]
    base_model = f"base_model: {hub_name}\n" if _HUB_NAME.fullmatch(hub_name) else ""  # the Hub refuses any other
    return f"""---
{base_model}library_name: megedit
tags: [knowledge-editing, megedit]
---
# {counts["active"]} edits for {config.base}

One dynamic neuron in layer {config.layer} (MeG, arXiv 2512.14395), made with MegEdit. It changes the answers to the
queries of its edits and to their rephrases; every other query gets the base model's own answer. `meg list` prints the
edits, `meg log` what was done with them.

    from megedit import MegModel
    model = MegModel.from_pretrained("this folder")

- Edits: {counts["active"]} in force, {counts["removed"]} removed; failed: {", ".join(failed) or "none"}.
- Revision {revision}; the first edits are from {source}.
- Router: {config.calibration.rule}; on held-out pseudo-knowledge {decision.true_positive_rate:.1%} of
  rephrases are recognised at {decision.false_positive_rate:.1%} of other queries.
- Base model fingerprint: {config.base_fingerprint}.

| stage of the fit | seconds | peak memory, MB |
|---|---|---|
{stages}
"""


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _inside(folder: Path, name: str) -> Path:
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
