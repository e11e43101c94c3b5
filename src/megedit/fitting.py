"""Fitting an adapter: the stages of MeG in order, each kept as it is finished, so that a killed run goes on.

edits -> layer chosen -> encoder tuned -> neurons collected -> router calibrated and trained -> generator trained
-> adapter
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.card import write_card
from megedit.adapter.change import changing
from megedit.adapter.config import AdapterConfig
from megedit.adapter.folder import LOG, check_replaceable, replacing_folder
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.adapter.sqlite import create
from megedit.adapter.weights import save_model, to_bytes, write_unchanging
from megedit.collect import answer_leads_of, collect, prepare_all
from megedit.edits.edit_set import EditSet
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.generator import WeightGenerator, train_generator
from megedit.layers import choose_layer
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, Prepared, tokenize_all
from megedit.lm.loading import fingerprint, load_base, resolve_folder
from megedit.lm.template import Template
from megedit.pseudo.knowledge import PseudoKnowledge, load_pseudo_knowledge, text_key
from megedit.pseudo.wordings import calibration_texts, in_words_of
from megedit.router.calibration import CalibrationSet, calibrate
from megedit.router.decision import Calibration
from megedit.router.familiarity import FamiliarityNetwork, train_familiarity, training_steps
from megedit.router.index import EditVectors
from megedit.router.router import encode_queries
from megedit.runtime.device import SPREAD
from megedit.runtime.processes import Processes, launched
from megedit.runtime.progress import Stages, log_file, run_logger
from megedit.runtime.resume import Workspace
from megedit.settings import DEFAULTS
from megedit.settings import FitSettings as FitSettings

logger = logging.getLogger("megedit")

CHECKED = 512  # edits on which the generator is checked while it is trained; all of them afterwards
ANSWERED_LEAD = 1.0  # logits; a generated neuron counts when its answer leads by this, well above bfloat16 noise


def fit(
    base: str,
    edits: EditSet,
    out: str | Path,
    settings: FitSettings = DEFAULTS,
    *,
    pseudo: PseudoKnowledge | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    stages: Stages | None = None,
) -> Adapter:
    """Edit `edits` into the base model named `base` and write the adapter to the folder `out`.

    pseudo: facts that are not edited, for the encoder and the router; the shipped ones by default. Whatever belongs
    to an edited fact is taken out of them first, and facts in the words of the edits are added where those are new
    (`settings.own_words`). A run that was interrupted is continued when called again with the same input and settings.
    Started as several processes by `accelerate launch` or `torchrun`, they share the work; `out` must then be on a disk
    that all of them see. Raises MegError for input that cannot be used.
    """
    out, processes = Path(out), launched(device)
    check_replaceable(out, overwrite)
    stages = (stages or Stages()) if processes.main else Stages(Console(quiet=True))
    with stages.stage("Loading the base model"):
        spread = str(device) == SPREAD
        model, tokenizer = load_base(base, dtype=dtype, device=device if spread else processes.device)
    if settings.layer is not None:
        Backbone(model, settings.layer)  # out of range? then before anything is written
    template = Template.for_tokenizer(tokenizer, settings.template, settings.instruction)
    examples = tokenize_all(tokenizer, template, edits)
    pseudo = (pseudo or load_pseudo_knowledge()).without(edits)
    if settings.own_words:
        pseudo = in_words_of(pseudo, edits.edits, settings.seed)
    training, held_out = pseudo.split(settings.held_out, settings.seed)
    inputs: dict[str, Any] = {
        "base": fingerprint(model),
        "edits": [edit.to_json() for edit in edits],
        "pseudo": hashlib.sha256(repr(pseudo).encode()).hexdigest(),
        "settings": asdict(settings),
        "dtype": str(model.dtype),
        "version": _version("megedit"),
    }
    work = Workspace(out, hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(), processes)
    with ExitStack() as context:
        context.enter_context(work)
        if processes.main:
            stages.keep_costs(work.folder / "costs.json")
            context.enter_context(log_file(work.folder / LOG))
            run_logger.info("Fit of %s (%d edits) to %s: %s", edits.source, len(edits), base, asdict(settings))
        place: dict[str, Any] = {"layer": settings.layer, "why": "as it was set"}
        if settings.layer is None:

            def find_place() -> dict[str, Any]:
                noise, collection = training.noise, settings.collection
                layer, why = choose_layer(model, tokenizer, template, edits, noise, collection, settings.seed, stages)
                return {"layer": layer, "why": why}

            place = work.json("layer", find_place)
            logger.info("The neuron goes in layer %s: %s.", place["layer"], place["why"])
        backbone = Backbone(model, place["layer"])
        course = _Fit(settings, edits, examples, backbone, tokenizer.pad_token_id, held_out, work, stages, processes)
        encoder = course.encoder(training)
        neurons, active = course.neurons()
        vectors = course.vectors(encoder, active)
        network, calibration = course.router(encoder, vectors, active)
        generator, record = course.generator(vectors, neurons["weights"], active)
        generated = course.generated(generator, vectors, active)
        config = AdapterConfig(
            base=str(Path(base).resolve()) if Path(base).exists() else base,  # as it can be found from anywhere
            base_fingerprint=inputs["base"],
            layer=backbone.layer,
            hidden_size=backbone.hidden_size,
            weight_size=backbone.weight_size,
            template=template,
            encoder_pooling=encoder.pooling,
            encoder_size=encoder.size,
            calibration=calibration,
            settings=settings,
            provenance={
                "source": edits.source,
                "layer": place["why"],
                "stages": stages.costs,
                "processes": processes.count,
                "generator_training": record,
                "versions": {name: _version(name) for name in ("megedit", "torch", "transformers", "diffusers")},
            },
        )
        rows = dict(zip(active.tolist(), vectors.rows(), strict=True))
        new, weights = [], to_bytes(neurons["weights"])
        for i, edit in enumerate(edits):
            lead, steps = round(float(neurons["leads"][i]), 3), int(neurons["steps"][i])
            found = EditRecord(edit, "active" if i in rows else "failed", lead, steps, bool(generated[i]))
            new.append(NewEdit(found, rows.get(i, b""), weights[i]))
    if processes.main:
        seen = torch.tensor(sorted({text_key(text) for text in pseudo.texts()}))
        with replacing_folder(out, overwrite) as folder:
            shutil.copyfile(work.folder / LOG, folder / LOG)
            write_unchanging(folder, config, encoder, seen)
            create(folder, config.weight_size)
            with changing(folder, "fit", edits.source) as change:
                change.add(new)
                change.set_model(*save_model(folder, 1, network, generator))
                change.note(active=len(active), failed=len(edits) - len(active))
            with reading(folder) as ledger:
                write_card(folder, config, ledger)
    work.remove()
    return load_adapter(out, processes.device)


@dataclass(frozen=True)
class _Fit:
    """The stages of one fit, and what they share. active: int64 (n,), the edits for which there is a neuron."""

    settings: FitSettings
    edits: EditSet
    examples: Sequence[Example]
    backbone: Backbone
    pad_id: int
    held_out: PseudoKnowledge
    work: Workspace
    stages: Stages
    processes: Processes

    def encoder(self, training: PseudoKnowledge) -> TextEncoder:
        settings, device, folder = self.settings, self.processes.device, self.work.folder / "encoder"
        if self.work.missing("encoder"):
            tuned = TextEncoder(resolve_folder(settings.encoder.name), device=device)
            with self.stages.stage("Tuning the text encoder", settings.encoder.steps) as advance:
                checkpoint = self.work.checkpoint("encoder")
                tuned.tune(training, settings.encoder, settings.seed, advance, checkpoint, self.processes)

            def save(partial: Path) -> None:
                tuned.save(partial)
                (partial / "pooling").write_text(tuned.pooling)

            self.work.files("encoder", save)
        encoder = TextEncoder(folder, (folder / "pooling").read_text(), device)
        encoder.model.requires_grad_(False)
        return encoder

    def neurons(self) -> tuple[dict[str, Tensor], Tensor]:
        """Weights, leads and steps of all edits, and the active ones."""

        def compute() -> dict[str, Tensor]:
            how, keep = self.settings.collection, self.work.shard
            with self.stages.stage("Collecting neurons", len(self.edits)) as advance:
                return asdict(
                    collect(self.backbone, self.examples, how, self.pad_id, advance, keep, processes=self.processes)
                )

        found = self.work.tensors("neurons", compute)
        for i in (found["leads"] <= 0).nonzero()[:, 0].tolist():
            edit = self.edits[i]
            why = self.examples[i].refused or f"no neuron was found that makes the model answer {edit.target!r}"
            logger.warning("Edit %s failed: %s.", edit.id, why)
        active = (found["leads"] > 0).nonzero()[:, 0]
        if len(active) == 0:
            raise MegError("None of the edits could be made; look at the log, or choose another layer.")
        return found, active

    def vectors(self, encoder: TextEncoder, active: Tensor) -> EditVectors:
        def compute() -> dict[str, Tensor]:
            with self.stages.stage("Encoding the edits"):
                return {"edits": encoder.encode(self._queries(active))}

        return EditVectors.pack(self.work.tensors("vectors", compute, packed=True)["edits"].to(self.processes.device))

    def router(
        self, encoder: TextEncoder, vectors: EditVectors, active: Tensor
    ) -> tuple[FamiliarityNetwork, Calibration]:
        settings, seed = self.settings.familiarity, self.settings.seed
        enrolled, familiar, unfamiliar, near = calibration_texts(self.held_out, seed)
        if not familiar or not unfamiliar:
            raise MegError(
                "Too little pseudo-knowledge is left after taking out what belongs to the edits; give more of it "
                "(--pseudo) to calibrate the router."
            )

        def compute() -> dict[str, Any]:
            subjects = [self.edits[i].subject for i in active]
            played_subjects = [fact.subject for fact in enrolled]
            all_subjects = [*subjects, *played_subjects]
            total = training_steps(len(vectors) + len(enrolled), settings)
            with self.stages.stage("Calibrating the router", total) as advance:
                played = encoder.encode([fact.prompt for fact in enrolled]).to(vectors.codes.device)
                known = EditVectors.pack(torch.cat([vectors.unpack(), played]))
                texts = CalibrationSet(
                    played,
                    played_subjects,
                    encode_queries(encoder, familiar, known, all_subjects),
                    encode_queries(encoder, [*unfamiliar, *near], known, all_subjects),
                    [*familiar, *unfamiliar, *near],
                    len(near),
                )
                return calibrate(vectors, subjects, texts, settings, seed, advance).to_json()

        def train() -> dict[str, Tensor]:
            with self.stages.stage("Training the router", training_steps(len(vectors), settings)) as advance:
                return train_familiarity(vectors.unpack(), settings, seed, advance).state_dict()

        calibration = Calibration.from_json(self.work.json("calibration", compute))
        network = FamiliarityNetwork(encoder.size, settings).to(vectors.codes.device)
        network.load_state_dict(self.work.tensors("router", train, packed=True))
        return network.eval().requires_grad_(False), calibration

    def generator(
        self, vectors: EditVectors, weights: Tensor, active: Tensor
    ) -> tuple[WeightGenerator, dict[str, Any]]:
        """The generator, and the record of its training."""
        settings, seed, device = self.settings.generator, self.settings.seed, self.processes.device
        known = vectors.unpack()

        def train() -> dict[str, Tensor]:
            chosen = torch.randperm(len(active), generator=torch.Generator().manual_seed(seed))[:CHECKED]
            with self.stages.stage("Training the generator", settings.training_steps(len(active))) as advance:
                answered = answer_check(self.backbone, self._batches(active[chosen]), known[chosen.to(device)])
                generator, history = train_generator(
                    weights[active].to(device),
                    known,
                    self.backbone.hidden_size,
                    settings,
                    seed,
                    answered,
                    advance,
                    checkpoint=self.work.checkpoint("generator"),
                    processes=self.processes,
                )
            self.work.json("generator_training", lambda: asdict(history))
            return generator.state_dict()

        generator = WeightGenerator(self.backbone.weight_size, known.shape[1], settings).to(device)
        generator.load_state_dict(self.work.tensors("generator", train, packed=True))
        return generator.eval().requires_grad_(False), self.work.json("generator_training", dict)

    def generated(self, generator: WeightGenerator, vectors: EditVectors, active: Tensor) -> Tensor:
        """Whether the generated neuron gives the answer: bool (edits,)."""

        def compute() -> dict[str, Tensor]:
            with self.stages.stage("Checking generated neurons", len(active)) as advance:
                rows, leads = self.processes.own(torch.arange(len(active))), torch.zeros(len(active))
                sampled = generator.sample(vectors.unpack()[rows.to(self.processes.device)])
                leads[rows] = answer_leads_of(self.backbone, self._batches(active[rows]), sampled, advance)
                return {"leads": self.processes.sum(leads)}

        found = torch.zeros(len(self.edits), dtype=torch.bool)
        found[active] = self.work.tensors("generated", compute)["leads"] >= ANSWERED_LEAD
        for i in active[~found[active]].tolist():
            edit = self.edits[i]
            logger.warning("Edit %s: the generated neuron does not give %r with certainty.", edit.id, edit.target)
        return found

    def _queries(self, active: Tensor) -> list[str]:
        return [self.edits[i].prompt for i in active]

    def _batches(self, rows: Tensor) -> Iterable[Prepared]:
        return prepare_all(self.backbone, [self.examples[i] for i in rows], self.settings.collection, self.pad_id)


def answer_check(
    backbone: Backbone, batches: Iterable[Prepared], vectors: Tensor
) -> Callable[[WeightGenerator], float]:
    """A function from a generator to the share of these edits whose neuron, sampled for the vectors, answers.

    Where there are no edits, the share is 1.
    """
    prepared = list(batches)

    def answered(generator: WeightGenerator) -> float:
        if not prepared:
            return 1.0
        leads = answer_leads_of(backbone, prepared, generator.sample(vectors))
        return float((leads >= ANSWERED_LEAD).float().mean())

    return answered
