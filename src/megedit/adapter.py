"""The adapter: one folder of data that turns a base model into the edited one. Its format: docs/adapter-format.md.

    meg_config.json      base model, layer, template, settings, calibration, sha256 of every other file
    model.safetensors    familiarity network, weight generator, vectors of the edits (eight bits a number)
    neurons.safetensors  collected weights, from which the generator was trained; not needed to answer
    seen.safetensors     keys of the texts that encoder and router were tuned on, to refuse evaluating on them
    encoder/             the tuned text encoder (eight bits a number), its configuration and tokenizer
    edits.jsonl          every edit with its status
    README.md            model card

Nothing in it is code and nothing is unpickled. A folder is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megedit.base import resolve_copy
from megedit.batches import Span
from megedit.edits import Edit
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.familiarity import Calibration, FamiliarityNetwork, FamiliaritySettings, Router
from megedit.generator import GeneratorSettings, WeightGenerator
from megedit.template import Template
from megedit.tensors import distinct_rows, load_tensors, save_tensors

FORMAT_VERSION = 2
CONFIG = "meg_config.json"
_NEEDED = (
    "model.safetensors",
    "neurons.safetensors",
    "seen.safetensors",
    "edits.jsonl",
    "encoder/config.json",
    "encoder/weights.safetensors",
)
_HUB_FILES = (CONFIG, "*.safetensors", "edits.jsonl", "README.md", "encoder/*")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
Status = Literal["active", "failed"]


@dataclass(frozen=True)
class EditRecord:
    """An edit and what became of it.

    lead: smallest lead in logits of an answer token with the collected neuron. generated: whether the generated
    neuron gives the answer. A failed edit could not be collected; the base model answers its query.
    """

    edit: Edit
    status: Status
    lead: float
    steps: int
    generated: bool


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
    """A loaded adapter."""

    config: AdapterConfig
    encoder: TextEncoder
    router: Router
    generator: WeightGenerator
    records: tuple[EditRecord, ...]
    neurons: Tensor  # (edits, weight size), on the CPU
    seen: Tensor  # int64 (texts,), sorted: `text_key` of every text that encoder and router were tuned on

    @property
    def active_edits(self) -> tuple[Edit, ...]:
        """The edits in force, in the order of the router's vectors."""
        return tuple(record.edit for record in self.records if record.status == "active")

    @property
    def identity(self) -> str:
        """A digest of what decides its answers: base model, template, encoder, router and generator."""
        digest = hashlib.sha256(json.dumps([self.config.base_fingerprint, asdict(self.config.template)]).encode())
        modules = (self.encoder.model, self.router.network, self.generator)
        tensors = [self.router.edits, *(tensor for module in modules for tensor in module.state_dict().values())]
        for tensor in tensors:
            digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps(self.config.calibration.to_json()).encode())
        return digest.hexdigest()

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the adapter to the Hugging Face Hub; returns its address. options: those of `create_repo`."""
        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        address = api.create_repo(name, exist_ok=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(self, Path(folder) / "adapter")
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "adapter")
        return str(address)


def save_adapter(adapter: Adapter, folder: str | Path, overwrite: bool = False) -> None:
    """Write an adapter. An adapter that is already there is only replaced with `overwrite`, and then at once.

    Raises MegError when the folder is there and is not an adapter or may not be replaced, or the disk is full.
    """
    with replacing_folder(Path(folder), overwrite) as partial:
        tensors = {f"generator.{name}": tensor for name, tensor in adapter.generator.state_dict().items()}
        tensors |= {f"router.{name}": tensor for name, tensor in adapter.router.network.state_dict().items()}
        tensors["edits"] = adapter.router.edits
        save_tensors(tensors, partial / "model.safetensors", packed=True)
        weights, index = distinct_rows(adapter.neurons)
        save_file({"weights": weights, "index": index}, partial / "neurons.safetensors")
        save_file({"keys": adapter.seen}, partial / "seen.safetensors")
        adapter.encoder.save(partial / "encoder")
        lines = [json.dumps(_record_to_json(record), ensure_ascii=False) + "\n" for record in adapter.records]
        (partial / "edits.jsonl").write_text("".join(lines), "utf-8")
        (partial / "README.md").write_text(model_card(adapter), "utf-8")
        files = {path.relative_to(partial).as_posix(): _sha256(path) for path in _files(partial)}
        config = {**adapter.config.to_json(), "files": files}
        (partial / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_adapter(name: str | Path, device: str | torch.device = "cpu") -> Adapter:
    """Load an adapter from a folder or, by name, from the Hugging Face Hub.

    Raises MegError when it is not an adapter, is damaged, or has a newer format than this version reads.
    """
    folder = find_adapter(name)
    config = read_config(folder)
    try:
        tensors = load_tensors(folder / "model.safetensors")
        network = FamiliarityNetwork(config.encoder_size, config.familiarity)
        network.load_state_dict(_part(tensors, "router."))
        generator = WeightGenerator(config.weight_size, config.encoder_size, config.generator)
        generator.load_state_dict(_part(tensors, "generator."))
        records = load_records(folder)
        collected = load_file(folder / "neurons.safetensors")
        neurons = collected["weights"].float()[collected["index"].long()]
        seen = load_file(folder / "seen.safetensors")["keys"]
        edits = tensors["edits"]
        if len(neurons) != len(records):
            raise ValueError("edits.jsonl and neurons.safetensors do not hold the same edits")
        if len(edits) != sum(record.status == "active" for record in records):
            raise ValueError("edits.jsonl and model.safetensors do not hold the same edits")
    except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise MegError(f"The adapter {folder} is damaged ({error}); restore it from a copy or fit it again.") from error
    encoder = TextEncoder(folder / "encoder", config.encoder_pooling, device)
    encoder.model.requires_grad_(False)
    subjects = [record.edit.subject or None for record in records if record.status == "active"]
    router = Router(network.to(device).eval().requires_grad_(False), edits.to(device), subjects, config.calibration)
    return Adapter(config, encoder, router, generator.to(device).eval().requires_grad_(False), records, neurons, seen)


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter: one here, or the local copy of one on the Hugging Face Hub."""
    return resolve_copy(str(name), _HUB_FILES)


def load_records(folder: Path) -> tuple[EditRecord, ...]:
    """The edits of an adapter folder."""
    lines = (folder / "edits.jsonl").read_text("utf-8").split("\n")
    return tuple(_record_from_json(json.loads(line)) for line in lines if line)


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
                raise MegError(
                    f"The adapter {folder} is damaged: {name} is not as it was written; restore it from a copy or "
                    "fit it again."
                )
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


def model_card(adapter: Adapter) -> str:
    """The README of an adapter folder."""
    config, records = adapter.config, adapter.records
    decision = config.calibration.decision
    failed = [record.edit.id for record in records if record.status == "failed"]
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
# {len(adapter.active_edits)} edits for {config.base}

One dynamic neuron in layer {config.layer} (MeG, arXiv 2512.14395), made with MegEdit. It changes the answers to the
queries in `edits.jsonl` and to their rephrases; every other query gets the base model's own answer.

    from megedit import MegModel
    model = MegModel.from_pretrained("this folder")

- Edits: {len(records)} from {config.record.get("source", "Python")}; failed: {", ".join(failed) or "none"}.
- Router: {config.calibration.rule}; on held-out pseudo-knowledge {decision.true_positive_rate:.1%} of
  rephrases are recognised at {decision.false_positive_rate:.1%} of other queries.
- Base model fingerprint: {config.base_fingerprint}.

| stage | seconds | peak memory, MB |
|---|---|---|
{stages}
"""


def _record_to_json(record: EditRecord) -> dict[str, Any]:
    return {**asdict(replace(record)), "edit": record.edit.to_json()}


def _record_from_json(values: dict[str, Any]) -> EditRecord:
    return EditRecord(**{**values, "edit": Edit.from_json(values["edit"])})


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
