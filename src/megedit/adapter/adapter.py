"""The adapter: what turns a base model into the edited one, loaded from its folder (folder.py)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.folder import (
    CONFIG,
    AdapterConfig,
    config_files,
    find_adapter,
    inside,
    load_model,
    read_config,
    replacing_folder,
)
from megedit.adapter.ledger import EditRecord, Status, reading
from megedit.edits.edit_set import Edit
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.generator import WeightGenerator, anchored
from megedit.lm.loading import fingerprint, load_base
from megedit.router.index import EditVectors
from megedit.router.router import Enrolled, Router
from megedit.runtime.device import first_device, hold_cast
from megedit.runtime.files import write_whole

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Adapter:
    """A loaded adapter, as its folder was at one revision; its networks are for use only, neither trained nor saved.

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
    for used in (encoder.model, generator):
        hold_cast(used, device)
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
            shutil.copyfile(inside(source, name), partial / name)
        ledger.copy(partial)
        write_card(partial)


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
