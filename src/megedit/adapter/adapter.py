"""The adapter: what turns a base model into the edited one, loaded from its folder (folder.py)."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.config import CONFIG, AdapterConfig
from megedit.adapter.enrolment import Enrolment
from megedit.adapter.folder import copy_adapter, find_adapter, read_config, unreadable
from megedit.adapter.ledger import EditRecord, Records, reading
from megedit.adapter.weights import from_bytes, load_encoder, load_model, verifier_of
from megedit.edits import Edit
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.generator import WeightGenerator, anchored
from megedit.lm.loading import fingerprint, load_base
from megedit.router.router import Router
from megedit.router.verifier import load_verifier
from megedit.runtime.device import first_device, hold_cast
from megedit.runtime.files import sha256_of
from megedit.runtime.shipped import ENCODER, SECOND_VERIFIER, VERIFIER


@dataclass
class Adapter:
    """A loaded adapter, as its folder was at one revision; its networks are for use only, neither trained nor saved.

    records: all edits of that revision. collected: the neurons, float32 (L,) by number of the edit, of the active edits
    whose answers the generator does not give. seen: int64 (texts,), sorted, `text_key` of every text that encoder and
    router were tuned on. made_from: sha256 of its configuration, which holds those of the files that never change, and
    of the model file.
    """

    folder: Path
    revision: int
    config: AdapterConfig
    encoder: TextEncoder
    router: Router
    generator: WeightGenerator
    records: Records
    collected: dict[int, Tensor]
    seen: Tensor
    made_from: tuple[str, str]

    @property
    def enrolment(self) -> Enrolment:
        """Its edits."""
        router = self.router
        return Enrolment(self.records, router.edits, router.vectors, router.owners, self.collected)

    @cached_property
    def active(self) -> Records:
        """The edits in force, with what became of them."""
        return self.records.having("active")

    @cached_property
    def active_edits(self) -> tuple[Edit, ...]:
        """The edits in force."""
        return tuple(record.edit for record in self.active)

    @cached_property
    def identity(self) -> str:
        """A digest of what decides its answers: base model, template, encoder, router, generator and edits in force.

        Of an edit these are what asks for it, its vectors and target, and its neuron where that is the collected one.
        """
        digest = hashlib.sha256(json.dumps([self.config.base_fingerprint, asdict(self.config.template)]).encode())
        modules = self._modules
        tensors = [self.router.vectors.unpack(), *self.collected.values()]
        tensors += [tensor for module in modules for tensor in module.state_dict().values()]
        for tensor in tensors:
            digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.config.calibration.to_json(), asdict(self.generator.settings)]).encode())
        edits = [[record.edit.asked(), record.edit.target] for record in self.active]
        digest.update(json.dumps([self.config.positions, self.active.states, edits]).encode())
        return digest.hexdigest()

    def to(self, device: str | torch.device) -> None:
        """Move encoder, router, generator and collected neurons to a device."""
        own: tuple[torch.nn.Module, ...] = (self.encoder.model, self.router.network, self.generator)
        for module in own:
            module.to(device)
        verifier = self.router.verifier  # which other adapters may have, too
        if verifier is not None and verifier.device != torch.device(device):
            self.router.verifier = copy.deepcopy(verifier).to(device)
        self.router.vectors, self.router.owners = self.router.vectors.to(device), self.router.owners.to(device)
        self.collected = {number: weights.to(device) for number, weights in self.collected.items()}

    @property
    def _modules(self) -> list[torch.nn.Module]:
        modules = [self.encoder.model, self.router.network, self.generator, self.router.verifier]
        return [module for module in modules if module is not None]

    def generate(self, vectors: Tensor, nearest: Tensor) -> Tensor:
        """Neurons for query vectors (float32 (queries, C)) whose nearest edits are these rows of the router's vectors
        (int64 (queries,)): float32 (queries, L)."""
        known = self.router.vectors[nearest]
        return self.generator.sample(anchored(vectors, known, self.generator.settings.nearest_edit_share))

    def neurons(self, records: Sequence[EditRecord]) -> Tensor:
        """The collected neurons of edits, from the folder: float32 (edits, L). Raises KeyError where they are gone."""
        with reading(self.folder) as ledger:
            found = ledger.neurons([record.number for record in records])
        return from_bytes(found, self.config.weight_size)

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
            # what the folder has no more is deleted there
            old = ["model-*.safetensors", VERIFIER, SECOND_VERIFIER, ENCODER, "encoder/*"]
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "adapter", delete_patterns=old)
        return str(address)


def load_adapter(
    name: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = None,
    known: Adapter | None = None,
) -> Adapter:
    """Load an adapter from a folder or, by name, from the Hugging Face Hub.

    dtype: in which encoder, familiarity network and generator multiply matrices; by default what is fast on the device.
    known: the adapter as it was loaded before, on this device; what is still the same is taken from it, so that a
    change of a few edits among many costs little.
    Raises MegError when it is not an adapter, is damaged, has a newer format than this version reads, or is a new fit
    that needs another model than the known one.
    """
    folder, device = find_adapter(name), first_device(device)
    config = read_config(folder)
    if known is not None and config.built_for != known.config.built_for:
        raise MegError(f"{folder} was fitted anew, for another base model, layer or template; start again with it.")
    with reading(folder) as ledger:
        try:
            made_from = sha256_of(folder / CONFIG), ledger.model[1]
            same = known if known is not None and known.made_from[0] == made_from[0] else None  # of the same fit
            revision = ledger.revision
            if known is not None and known.made_from == made_from:
                if known.revision == revision:
                    return known
                network, generator = known.router.network, known.generator
            else:
                network, generator = load_model(folder, ledger, config, device, dtype)
                hold_cast(generator, device, dtype)
            before = Enrolment.empty(config.encoder_size, device) if same is None else same.enrolment
            own = before.at(ledger, config.weight_size)
            seen = load_file(folder / "seen.safetensors")["keys"] if same is None else same.seen
        except FileNotFoundError as error:
            raise MegError(f"{folder} is damaged: {Path(str(error.filename)).name} is missing.") from error
        except PermissionError as error:
            raise unreadable(folder, Path(str(error.filename)).name) from error
        except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            what = str(error).partition("\n")[0]
            raise MegError(
                f"The adapter {folder} is damaged ({what}); restore it from a copy or fit it again."
            ) from error
    if same is not None:
        encoder, verifier = same.encoder, same.router.verifier
    else:
        encoder = load_encoder(folder, config, device, dtype)
        hold_cast(encoder.model, device, dtype)
        verified = config.calibration.rule == "verified"
        verifier = load_verifier(verifier_of(folder), device, dtype) if verified else None
    router = Router(encoder, network, own.vectors, own.owners, own.edits, config.calibration, verifier)
    return Adapter(folder, revision, config, encoder, router, generator, own.records, own.collected, seen, made_from)


def check_base(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Raise MegError when an adapter was made for another base model than this."""
    if fingerprint(model) != config.base_fingerprint:
        raise MegError(
            f"This adapter was made for the base model {config.base} and does not fit the one given; "
            "load it with that base model, or fit a new adapter on this one."
        )
