"""Fitting an adapter: the stages of MeG in order, each kept as it is finished, so that a killed run goes on.

edits -> layer chosen -> encoder tuned -> neurons collected -> router calibrated and trained -> generator trained
-> adapter
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.adapter.card import write_card
from megedit.adapter.change import changing
from megedit.adapter.config import AdapterConfig
from megedit.adapter.folder import LOG, check_replaceable, replacing_folder
from megedit.adapter.ledger import EditRecord, NewEdit, Status, reading
from megedit.adapter.sqlite import create
from megedit.adapter.weights import save_model, to_bytes, write_unchanging
from megedit.checks import ANSWERED_LEAD, answer_check, leads_worst_first
from megedit.collect import Collected, answer_leads_of, collect, prepare_all
from megedit.edits import Edit, EditSet
from megedit.encoder import TextEncoder, shipped_encoder
from megedit.errors import MegError
from megedit.generator import WeightGenerator, missed, train_generator
from megedit.layers import choose_layer
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, Prepared, tokenize_all
from megedit.lm.loading import fingerprint, load_base, resolve_folder
from megedit.lm.template import Template
from megedit.pseudo.knowledge import PseudoKnowledge, load_held_out, load_pseudo_knowledge, text_key
from megedit.pseudo.wordings import calibration_texts
from megedit.router.calibration import calibrate
from megedit.router.curve import FILE as CURVE
from megedit.router.decision import Calibration
from megedit.router.familiarity import FamiliarityNetwork, train_familiarity, training_steps
from megedit.router.index import EditVectors, owners_of
from megedit.runtime.callbacks import Advance
from megedit.runtime.device import SPREAD
from megedit.runtime.files import sha256_of
from megedit.runtime.processes import Processes, launched
from megedit.runtime.progress import Stages, log_file, run_logger
from megedit.runtime.resume import Workspace
from megedit.runtime.shipped import ENCODER, SECOND_VERIFIER, VERIFIER, shipped
from megedit.settings import DEFAULTS, MINILM
from megedit.settings import FitSettings as FitSettings

logger = logging.getLogger("megedit")

CHECKED = 512  # edits on which the generator is checked while it is trained; all of them afterwards


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
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
) -> Adapter:
    """Edit `edits` into the base model named `base` and write the adapter to the folder `out`.

    pseudo: facts that are not edited, for an encoder that is to be tuned (`settings.encoder.steps`) and a router that
    is calibrated for it, and without effect where none is; the shipped ones by default. Whatever belongs to an edited
    fact is taken out of them first. dtype: the number format of the base model and of the matrix products of encoder,
    verifier, familiarity network and generator; by default the fast one of the device. loaded: the base model and its
    tokenizer, where `load_base` has loaded them already.

    A run that was interrupted is continued when called again with the same input and settings. Started as several
    processes by `accelerate launch` or `torchrun`, they share the work; `out` must then be on a disk that all of them
    see. Raises MegError for input that cannot be used.
    """
    processes = launched(device)
    check_replaceable(Path(out), overwrite)
    stages = (stages or Stages()) if processes.main else Stages(Console(quiet=True))
    with stages.stage("Loading the base model"):
        spread = str(device) == SPREAD
        place = device if spread else processes.device
        model, tokenizer = loaded or load_base(base, dtype=dtype, device=place)
    given = _Input.of(base, model, tokenizer, edits, settings, pseudo, dtype)
    with _begun(given, Path(out), stages, processes) as run:
        backbone = run.place()
        encoder = run.encoder()
        neurons = run.neurons(backbone)
        vectors = run.vectors(encoder, neurons)
        network, calibration = run.router(encoder, vectors)
        generator = run.generator(backbone, vectors, neurons)
        generated = run.generated(backbone, generator, vectors, neurons)
        config = run.config(backbone, encoder, calibration)
        entries = new_edits(edits, neurons, vectors.to_bytes(run.owners(neurons)), generated)
        if processes.main:
            with replacing_folder(Path(out), overwrite) as folder:
                shutil.copyfile(run.work.folder / LOG, folder / LOG)
                write_unchanging(folder, config, encoder, given.seen)
                _write_ledger(folder, config, entries, edits.source, save_model(folder, 1, network, generator))
    return load_adapter(out, processes.device, dtype=dtype)


@dataclass(frozen=True)
class _Input:
    """All that decides the result of a fit.

    pseudo, held_out: what the encoder is tuned and what the router is calibrated on, all that is left beside the edits.
    """

    base: str
    base_fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    edits: EditSet
    examples: Sequence[Example]
    pseudo: PseudoKnowledge
    held_out: PseudoKnowledge
    settings: FitSettings
    dtype: torch.dtype | None  # None: the fast one of the device

    @classmethod
    def of(
        cls,
        base: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        edits: EditSet,
        settings: FitSettings,
        pseudo: PseudoKnowledge | None,
        dtype: torch.dtype | None,
    ) -> _Input:
        """The input, checked. Raises MegError for what cannot be used, before anything is written."""
        if settings.layer is not None:
            Backbone(model, settings.layer)  # out of range?
        template = Template.for_tokenizer(tokenizer, settings.template, settings.instruction)
        examples = tokenize_all(tokenizer, template, edits, settings.collection.contexts)
        if settings.encoder.steps:
            free = (pseudo or load_pseudo_knowledge()).without(edits)
            tuned_on, held_out = free.split(settings.held_out, settings.seed)
        else:
            held_out = load_held_out().without(edits)
            tuned_on = PseudoKnowledge((), (pseudo or held_out).noise, ())
        known = (template, edits, examples, tuned_on, held_out, settings, dtype)
        return cls(base, fingerprint(model), model, tokenizer, *known)

    @property
    def key(self) -> str:
        """A digest of all of it: the run of another key is another run."""
        inputs: dict[str, Any] = {
            "base": self.base_fingerprint,
            "edits": [edit.to_json() for edit in self.edits],
            "pseudo": hashlib.sha256(repr((self.pseudo, self.held_out)).encode()).hexdigest(),
            "settings": asdict(self.settings),
            "dtype": [str(self.model.dtype), str(self.dtype)],
            "version": version("megedit"),
            "shipped": [sha256_of(shipped(name)) for name in (ENCODER, VERIFIER, SECOND_VERIFIER, CURVE)],
            "examples": hashlib.sha256(repr(self.examples).encode()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    @property
    def seen(self) -> Tensor:
        """Keys of the texts that encoder and router learn from: int64 (texts,), sorted."""
        return torch.tensor(sorted({text_key(text) for of in (self.pseudo, self.held_out) for text in of.texts()}))


@contextmanager
def _begun(given: _Input, out: Path, stages: Stages, processes: Processes) -> Iterator[_Run]:
    """Begin a run, or go on with it where it was interrupted; its folder goes away when all went well."""
    with Workspace(out, given.key, processes) as work:
        with ExitStack() as context:
            if processes.main:
                stages.keep_costs(work.folder / "costs.json")
                context.enter_context(log_file(work.folder / LOG))
                edits, settings = given.edits, asdict(given.settings)
                run_logger.info("Fit of %s (%d edits) to %s: %s", edits.source, len(edits), given.base, settings)
            yield _Run(given, work, stages, processes)
        work.remove()


def _write_ledger(
    folder: Path, config: AdapterConfig, entries: Sequence[NewEdit], source: str, model: tuple[str, str]
) -> None:
    """Write the ledger of a new adapter, and its card. model: name and sha256 of the model's file."""
    create(folder, config.weight_size)
    active = sum(entry.record.status == "active" for entry in entries)
    with changing(folder, "fit", source) as change:
        change.add(entries)
        change.set_model(*model)
        change.note(active=active, failed=len(entries) - active)
    with reading(folder) as ledger:
        write_card(folder, config, ledger)


T = TypeVar("T")


@dataclass(frozen=True)
class _Run:
    """The stages of one fit: each result is read where it is there already, else computed and kept."""

    given: _Input
    work: Workspace
    stages: Stages
    processes: Processes

    def place(self) -> Backbone:
        """The base model, split at the layer of the neuron (the layer set, known for the model, or probed)."""
        given = self.given

        def choose() -> dict[str, Any]:
            if given.settings.layer is not None:
                return {"layer": given.settings.layer, "why": "as it was set"}
            layer, why = choose_layer(
                given.model,
                given.tokenizer,
                given.template,
                given.edits,
                given.pseudo.noise,
                given.settings.collection,
                given.settings.seed,
                self.stages,
            )
            return {"layer": layer, "why": why}

        found = self.work.json("layer", choose)
        if given.settings.layer is None:
            logger.info("The neuron goes in layer %s: %s.", found["layer"], found["why"])
        return Backbone(given.model, found["layer"])

    def encoder(self) -> TextEncoder:
        """The text encoder: the shipped one, or one that is tuned on pseudo-knowledge."""
        settings, device, folder = self.given.settings.encoder, self.processes.device, self.work.folder / "encoder"
        if settings.shipped:
            encoder = shipped_encoder(device, self.given.dtype)
            encoder.model.requires_grad_(False)
            return encoder
        if self.work.missing("encoder"):
            if settings.trained and settings.name == MINILM:
                tuned = shipped_encoder(device, self.given.dtype)
            else:
                tuned = TextEncoder(resolve_folder(settings.name), device=device, dtype=self.given.dtype)
            if settings.steps:
                with self.stages.stage("Tuning the text encoder", settings.steps) as advance:
                    seed, checkpoint = self.given.settings.seed, self.work.checkpoint("encoder")
                    tuned.tune(self.given.pseudo, settings, seed, advance, checkpoint, self.processes)

            def save(partial: Path) -> None:
                tuned.save(partial)
                (partial / "pooling").write_text(tuned.pooling)

            self.work.files("encoder", save)
        encoder = TextEncoder(folder, (folder / "pooling").read_text(), device, self.given.dtype)
        encoder.model.requires_grad_(False)
        return encoder

    def neurons(self, backbone: Backbone) -> Collected:
        """The neurons of all edits. Raises MegError when none of them makes the model give its target."""
        given = self.given

        def compute(advance: Advance) -> dict[str, Tensor]:
            settings, pad_id = given.settings.collection, given.tokenizer.pad_token_id
            found = collect(
                backbone, given.examples, settings, pad_id, advance, self.work.shard, processes=self.processes
            )
            return asdict(found)

        found = Collected(**self._stage("neurons", "Collecting neurons", len(given.edits), compute))
        for i in (~found.succeeded).nonzero()[:, 0].tolist():
            edit = given.edits[i]
            why = given.examples[i].refused or f"no neuron was found that makes the model answer {edit.target!r}"
            logger.warning("Edit %s failed: %s.", edit.id, why)
        if not found.succeeded.any():
            raise MegError("None of the edits could be made; look at the log, or choose another layer.")
        return found

    def owners(self, neurons: Collected) -> Tensor:
        """The edit of each vector, an index into those that have a neuron: int64 (vectors,)."""
        return owners_of([len(self.given.edits[i].asked()) for i in _active(neurons)])

    def vectors(self, encoder: TextEncoder, neurons: Collected) -> EditVectors:
        """The vectors of all that asks for the edits that have a neuron."""
        asked = [(self.given.edits[i].id, text) for i in _active(neurons) for text in self.given.edits[i].asked()]
        texts = [text for _, text in asked]
        if overlong := encoder.overlong(texts):
            logger.warning(
                "%d queries of edits are longer than the %d tokens that the text encoder reads; of such a query only "
                "the end is read. The first is one of edit %s.",
                len(overlong),
                encoder.window,
                asked[overlong[0]][0],
            )

        def compute(advance: Advance) -> dict[str, Tensor]:
            return {"edits": encoder.encode(texts)}

        found = self._stage("vectors", "Encoding the edits", None, compute, packed=True)
        return EditVectors.pack(found["edits"].to(self.processes.device))

    def router(self, encoder: TextEncoder, vectors: EditVectors) -> tuple[FamiliarityNetwork, Calibration]:
        """The familiarity network, which has memorised the edits, and the router's calibrated gate or decision.

        Held-out facts are memorised beside the edits, so that the calibration sees a network as dense as that of the
        edits. Where the network is but a gate, it may know them for good; where it decides, another one learns the
        edits alone.
        """
        given, device = self.given, self.processes.device
        enrolled, familiar, unfamiliar = calibration_texts(given.held_out, given.settings.seed)
        if not familiar or not unfamiliar:
            raise MegError(
                "Too little pseudo-knowledge is left after taking out what belongs to the edits; give more of it "
                "(--pseudo) to calibrate the router."
            )

        def encode(advance: Advance) -> dict[str, Tensor]:
            texts = {"enrolled": enrolled, "familiar": familiar, "unfamiliar": unfamiliar}
            return {name: encoder.encode(of) for name, of in texts.items()}

        held_out = self._stage("held_out", "Encoding held-out questions", None, encode, packed=True)
        both = EditVectors.pack(torch.cat([vectors.unpack(), held_out["enrolled"].to(device)]))
        network = self._network("router", "Training the router", both)
        calibration = calibrate(
            network, both, held_out["familiar"].to(device), held_out["unfamiliar"].to(device), given.settings.router
        )
        if calibration.rule != "verified":
            network = self._network("router_alone", "Training the router on the edits alone", vectors)
        return network, calibration

    def _network(self, name: str, title: str, vectors: EditVectors) -> FamiliarityNetwork:
        """A familiarity network that has memorised these vectors."""
        settings, seed = self.given.settings.familiarity, self.given.settings.seed

        def train(advance: Advance) -> dict[str, Tensor]:
            checkpoint, dtype, known = self.work.checkpoint(name), self.given.dtype, vectors.unpack()
            trained = train_familiarity(known, settings, seed, advance, checkpoint=checkpoint, dtype=dtype)
            return trained.state_dict()

        state = self._stage(name, title, training_steps(len(vectors), settings), train, packed=True)
        network = FamiliarityNetwork(vectors.codes.shape[1], settings)
        network.load_state_dict(state)
        return network.to(self.processes.device).eval().requires_grad_(False)

    def generator(self, backbone: Backbone, vectors: EditVectors, neurons: Collected) -> WeightGenerator:
        """The weight generator, trained on the collected neurons."""
        settings, seed, device = self.given.settings.generator, self.given.settings.seed, self.processes.device
        rows, known = _active(neurons)[self.owners(neurons)], vectors.unpack()  # by vector

        def train(advance: Advance) -> dict[str, Tensor]:
            chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:CHECKED]
            own, asked = neurons.weights[rows[chosen]].to(device), known[chosen.to(device)]
            answered = answer_check(backbone, self._batches(backbone, rows[chosen]), own, asked)
            generator, history = train_generator(
                neurons.weights[rows].to(device),
                known,
                backbone.hidden_size,
                settings,
                seed,
                answered,
                advance,
                checkpoint=self.work.checkpoint("generator"),
                processes=self.processes,
                compute_dtype=self.given.dtype,
            )
            self.work.json("generator_training", lambda: asdict(history))
            return generator.state_dict()

        total = settings.training_steps(len(rows))
        state = self._stage("generator", "Training the generator", total, train, packed=True)
        generator = WeightGenerator(backbone.weight_size, known.shape[1], settings, self.given.dtype)
        generator.load_state_dict(state)
        return generator.to(device).eval().requires_grad_(False)

    def generated(
        self, backbone: Backbone, generator: WeightGenerator, vectors: EditVectors, neurons: Collected
    ) -> Tensor:
        """For each edit, true where the neuron generated for each text gives the answer: bool (edits,).

        Those that are surely near enough to the collected one are not asked (checks.py).
        """
        owners, active, device = self.owners(neurons), _active(neurons), self.processes.device
        known = vectors.unpack()  # (vectors, C)

        def compute(advance: Advance) -> dict[str, Tensor]:
            def leads_of(rows: Tensor) -> Tensor:
                leads, own = torch.zeros(len(owners)), self.processes.own(rows)
                batches = self._batches(backbone, active[owners[own]])
                leads[own] = answer_leads_of(backbone, batches, generator.sample(known[own.to(device)]), advance)
                return self.processes.sum(leads)[rows]

            off = missed(generator, neurons.weights[active[owners]].to(device), known)
            off = self.processes.sum(off)  # so that all have one order
            leads = leads_worst_first(off, leads_of, self.given.settings.seed)
            asked = int(leads.isfinite().sum())
            run_logger.info("Of %d generated neurons, %d were asked for their answer", len(leads), asked)
            advance(len(leads) - asked)
            return {"leads": leads}

        leads = self._stage("generated", "Checking generated neurons", len(owners), compute)["leads"]
        lowest = torch.full((len(active),), torch.inf).scatter_reduce(0, owners, leads, "amin")
        found = torch.zeros(len(self.given.edits), dtype=torch.bool)
        found[active] = lowest >= ANSWERED_LEAD
        for i in active[~found[active]].tolist():
            edit = self.given.edits[i]
            logger.warning("Edit %s: the generated neuron does not give %r with certainty.", edit.id, edit.target)
        return found

    def config(self, backbone: Backbone, encoder: TextEncoder, calibration: Calibration) -> AdapterConfig:
        """The adapter's configuration."""
        given = self.given
        return AdapterConfig(
            base=str(Path(given.base).resolve()) if Path(given.base).exists() else given.base,  # as found from anywhere
            base_fingerprint=given.base_fingerprint,
            layer=backbone.layer,
            hidden_size=backbone.hidden_size,
            weight_size=backbone.weight_size,
            template=given.template,
            encoder_pooling=encoder.pooling,
            encoder_size=encoder.size,
            calibration=calibration,
            settings=given.settings,
            provenance={
                "source": given.edits.source,
                "layer": self.work.json("layer", dict)["why"],
                "stages": self.stages.costs,
                "processes": self.processes.count,
                "generator_training": self.work.json("generator_training", dict),
                "versions": {name: version(name) for name in ("megedit", "torch", "transformers", "diffusers")},
            },
        )

    def _stage(
        self,
        name: str,
        title: str,
        total: int | None,
        compute: Callable[[Advance], dict[str, Tensor]],
        packed: bool = False,
    ) -> dict[str, Tensor]:
        """The tensors of a stage."""
        return self.work.tensors(name, self._timed(title, total, compute), packed)

    def _timed(self, title: str, total: int | None, compute: Callable[[Advance], T]) -> Callable[[], T]:
        """The computation as a stage that shows its progress and whose costs are kept."""

        def timed() -> T:
            with self.stages.stage(title, total) as advance:
                return compute(advance)

        return timed

    def _batches(self, backbone: Backbone, rows: Tensor) -> Iterable[Prepared]:
        examples, pad_id = [self.given.examples[i] for i in rows], self.given.tokenizer.pad_token_id
        return prepare_all(backbone, examples, self.given.settings.collection, pad_id)


def _active(neurons: Collected) -> Tensor:
    """The edits that have a neuron: int64 (n,)."""
    return neurons.succeeded.nonzero()[:, 0]


def new_edits(edits: Iterable[Edit], neurons: Collected, vectors: Iterable[bytes], generated: Tensor) -> list[NewEdit]:
    """Collected edits as the ledger keeps them: in force where there is a neuron, otherwise failed.

    vectors: the row of each edit that has a neuron. generated: bool (edits,), whether the generator gives the answer.
    """
    of_edits = (of.tolist() for of in (neurons.succeeded, neurons.leads, neurons.steps, generated))
    rows, found = iter(vectors), []
    for edit, weights, succeeded, lead, steps, by_generator in zip(
        edits, to_bytes(neurons.weights), *of_edits, strict=True
    ):
        status: Status = "active" if succeeded else "failed"
        record = EditRecord(edit, status, round(lead, 3), steps, by_generator)
        found.append(NewEdit(record, next(rows) if succeeded else b"", weights))
    return found
