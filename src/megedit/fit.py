"""Fitting an adapter: the stages of MeG in order, each kept as it is finished, so that a killed run goes on.

edits -> layer chosen -> encoder tuned -> neurons collected -> router calibrated and trained -> generator trained
-> adapter
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from megedit.adapter import (
    Adapter,
    AdapterConfig,
    check_replaceable,
    load_adapter,
    replacing_folder,
    save_model,
    write_card,
    write_unchanging,
)
from megedit.backbone import Backbone
from megedit.base import fingerprint, load_base, resolve_folder
from megedit.batches import Prepared, tokenize
from megedit.collect import (
    CollectionSettings,
    answer_leads_of,
    collect,
    prepare_all,
)
from megedit.edits import EditSet
from megedit.encoder import EncoderSettings, TextEncoder
from megedit.errors import MegError
from megedit.familiarity import (
    Calibration,
    CalibrationSet,
    FamiliarityNetwork,
    FamiliaritySettings,
    calibrate,
    read,
    train_familiarity,
    training_steps,
)
from megedit.generator import Conditions, GeneratorSettings, WeightGenerator, reworded, train_generator
from megedit.ledger import EditRecord, Entry, changing, create
from megedit.names import SubjectIndex
from megedit.probe import choose_layer
from megedit.processes import Processes, launched
from megedit.progress import Stages
from megedit.pseudo import (
    OtherQuestions,
    PseudoFact,
    PseudoKnowledge,
    load_pseudo_knowledge,
    names_another,
    text_key,
)
from megedit.template import Template
from megedit.vectors import EditVectors
from megedit.workspace import Workspace

logger = logging.getLogger("megedit")

CHECKED = 512  # edits on which the generator is checked while it is trained; all of them afterwards
ANSWERED_LEAD = 1.0  # logits; a generated neuron counts when its answer leads by this, well above bfloat16 noise


@dataclass(frozen=True)
class FitSettings:
    """All settings of a fit."""

    layer: int | None = field(default=None, metadata={"help": "decoder layer of the neuron; known or probed"})
    template: str = field(default="auto", metadata={"help": "auto, chat, question, raw, or a text with {query} in it"})
    instruction: str = field(
        default="Answer in a few words: ", metadata={"help": "stands before the query in the chat template"}
    )
    held_out: float = field(default=0.15, metadata={"help": "share of the pseudo-knowledge kept for calibration"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    collection: CollectionSettings = field(default_factory=CollectionSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    familiarity: FamiliaritySettings = field(default_factory=FamiliaritySettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)


def fit(
    base: str,
    edits: EditSet,
    out: str | Path,
    settings: FitSettings = FitSettings(),
    *,
    pseudo: PseudoKnowledge | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    stages: Stages | None = None,
) -> Adapter:
    """Edit `edits` into the base model named `base` and write the adapter to the folder `out`.

    pseudo: facts that are not edited, for the encoder and the router; the shipped ones by default. Whatever belongs
    to an edited fact is taken out of them first. A run that was interrupted is continued when called again with the
    same input and settings. Started as several processes by `accelerate launch` or `torchrun`, they share the work;
    `out` must then be on a disk that all of them see. Raises MegError for input that cannot be used.
    """
    out, processes = Path(out), launched(device)
    device = processes.device
    check_replaceable(out, overwrite)
    stages = (stages or Stages()) if processes.main else Stages(Console(quiet=True))
    with stages.stage("Loading the base model"):
        model, tokenizer = load_base(base, dtype=dtype, device=device)
    if settings.layer is not None:
        Backbone(model, settings.layer)  # out of range? then before anything is written
    template = Template.for_tokenizer(tokenizer, settings.template, settings.instruction)
    examples, pad_id = [tokenize(tokenizer, template, edit) for edit in edits], tokenizer.pad_token_id
    pseudo = (pseudo or load_pseudo_knowledge()).without(edits)
    training, held_out = pseudo.split(settings.held_out, settings.seed)
    base_id = fingerprint(model)
    inputs = {
        "base": base_id,
        "edits": [edit.to_json() for edit in edits],
        "pseudo": hashlib.sha256(repr(pseudo).encode()).hexdigest(),
        "settings": asdict(settings),
        "dtype": str(model.dtype),
        "version": _version("megedit"),
    }
    work = Workspace(out, hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(), processes)
    if processes.main:
        stages.keep_costs(work.folder / "costs.json")

    place: dict[str, Any] = {"layer": settings.layer, "why": "as it was set"}
    if settings.layer is None:

        def find_place() -> dict[str, Any]:
            noise, collection = training.noise, settings.collection
            layer, why = choose_layer(model, tokenizer, template, edits, noise, collection, settings.seed, stages)
            return {"layer": layer, "why": why}

        place = work.json("layer", find_place)
        logger.info("The neuron goes in layer %s: %s.", place["layer"], place["why"])
    backbone = Backbone(model, place["layer"])

    encoder_folder = work.folder / "encoder"
    if work.missing("encoder"):
        tuned = TextEncoder(resolve_folder(settings.encoder.name), device=device)
        with stages.stage("Tuning the text encoder", settings.encoder.steps) as advance:
            checkpoint = work.checkpoint("encoder")
            tuned.tune(training, settings.encoder, settings.seed, advance, checkpoint, processes)

        def save_tuned(folder: Path) -> None:
            tuned.save(folder)
            (folder / "pooling").write_text(tuned.pooling)

        work.files("encoder", save_tuned)
    encoder = TextEncoder(encoder_folder, (encoder_folder / "pooling").read_text(), device)
    encoder.model.requires_grad_(False)

    def collect_neurons() -> dict[str, Tensor]:
        with stages.stage("Collecting neurons", len(edits)) as advance:
            how = settings.collection
            return asdict(collect(backbone, examples, how, pad_id, advance, work.shard, processes=processes))

    neurons = work.tensors("neurons", collect_neurons)
    active = (neurons["leads"] > 0).nonzero()[:, 0]
    for i in (neurons["leads"] <= 0).nonzero()[:, 0].tolist():
        logger.warning(
            "Edit %s failed: no neuron was found that makes the model answer %r.",
            edits[i].id,
            edits[i].target,
        )
    if len(active) == 0:
        raise MegError("None of the edits could be made; look at the log, or choose another layer.")

    queries = [edits[i].prompt for i in active]

    def encode_edits() -> dict[str, Tensor]:
        return {"edits": encoder.encode(queries)}

    kept = EditVectors.pack(work.tensors("vectors", encode_edits, packed=True)["edits"].to(device))
    subjects = [edits[i].subject or None for i in active]
    network, calibration = _fit_router(work, stages, encoder, kept, subjects, held_out, settings)
    vectors = kept.unpack()

    def reword() -> dict[str, Tensor]:
        with stages.stage("Encoding noisy wordings", settings.generator.wordings * len(active)) as advance:
            return reworded(encoder, queries, held_out, settings.generator, settings.seed, advance)

    others = work.tensors("conditions", reword)
    conditions = Conditions(vectors, others["noisy"].to(device), others["shifts"].to(device))

    chosen = torch.randperm(len(active), generator=torch.Generator().manual_seed(settings.seed))[:CHECKED]
    checked = prepare_all(backbone, [examples[i] for i in active[chosen]], settings.collection, pad_id)
    answered = answer_check(backbone, checked, vectors[chosen.to(device)])
    generator, training_record = _fit_generator(
        work, stages, backbone, neurons["weights"][active].to(device), conditions, settings, answered, processes
    )

    def check_neurons() -> dict[str, Tensor]:
        with stages.stage("Checking generated neurons", len(active)) as advance:
            rows, leads = processes.own(torch.arange(len(active))), torch.zeros(len(active))
            batches = prepare_all(backbone, [examples[i] for i in active[rows]], settings.collection, pad_id)
            sampled = generator.sample(vectors[rows.to(device)])
            leads[rows] = answer_leads_of(backbone, batches, sampled, advance)
            return {"leads": processes.sum(leads)}

    generated = torch.zeros(len(edits), dtype=torch.bool)
    generated[active] = work.tensors("generated", check_neurons)["leads"] >= ANSWERED_LEAD
    for i in active[~generated[active]].tolist():
        logger.warning("Edit %s: the generated neuron does not give %r with certainty.", edits[i].id, edits[i].target)

    records = tuple(
        EditRecord(
            edit=edit,
            status="active" if neurons["leads"][i] > 0 else "failed",
            lead=round(float(neurons["leads"][i]), 3),
            steps=int(neurons["steps"][i]),
            generated=bool(generated[i]),
        )
        for i, edit in enumerate(edits)
    )
    config = AdapterConfig(
        base=_absolute(base),
        base_fingerprint=base_id,
        layer=backbone.layer,
        hidden_size=backbone.hidden_size,
        weight_size=backbone.weight_size,
        span=settings.collection.span,
        template=template,
        encoder_pooling=encoder.pooling,
        encoder_size=encoder.size,
        familiarity=settings.familiarity,
        generator=settings.generator,
        calibration=calibration,
        settings=asdict(settings),
        record={
            "source": edits.source,
            "layer": place["why"],
            "stages": stages.costs,
            "generator_training": training_record,
            "versions": {name: _version(name) for name in ("megedit", "torch", "transformers", "diffusers")},
        },
    )
    seen = torch.tensor(sorted({text_key(text) for text in pseudo.texts()}))
    rows = dict(zip(active.tolist(), kept.rows(), strict=True))
    entries = [Entry(record, rows.get(i, b""), neurons["weights"][i]) for i, record in enumerate(records)]

    if processes.main:
        with replacing_folder(out, overwrite) as folder:
            write_unchanging(folder, config, encoder, seen)
            create(folder)
            with changing(folder, "fit", edits.source) as change:
                change.add(entries)
                change.set_model(*save_model(folder, 1, network, generator))
                change.note(active=len(active), failed=len(edits) - len(active))
            write_card(folder)
    work.remove()
    return load_adapter(out, device)


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


def calibration_texts(
    held_out: PseudoKnowledge, seed: int, limit: int = 400
) -> tuple[list[PseudoFact], list[str], list[str], list[str]]:
    """(enrolled facts, familiar, unfamiliar and near queries): half of the held-out facts play edits.

    Familiar: their rephrases, every second one behind a noise sentence. Unfamiliar: the queries of the other half
    (same relations, other subjects), neighbourhood prompts of the enrolled, unrelated questions. Near: other questions
    about the subjects of the enrolled.
    """
    chance = random.Random(seed)
    facts = list(held_out.facts)
    chance.shuffle(facts)
    half = min(len(facts) // 2, limit)
    enrolled, others = facts[:half], facts[half : 2 * half]
    subjects = SubjectIndex(fact.subject for fact in enrolled if fact.subject)
    familiar = [text for fact in enrolled for text in fact.rephrases]
    familiar = [
        held_out.behind_noise(text, chance) if held_out.noise and i % 2 else text for i, text in enumerate(familiar)
    ]
    unfamiliar = [
        fact.prompt
        for fact in others
        if fact.subject not in subjects and not names_another(fact.prompt, fact.subject, subjects)
    ]
    neighbours = [chance.choice(fact.neighbours) for fact in enrolled if fact.neighbours]
    unfamiliar += [text for text in neighbours if not subjects.named_alone_in(text)]
    unfamiliar += chance.sample(held_out.unrelated, min(len(held_out.unrelated), half))
    questions = OtherQuestions(facts)
    near = [text for fact in enrolled if (text := questions.about(fact, chance))]
    return enrolled, familiar, unfamiliar, near


def _fit_router(
    work: Workspace,
    stages: Stages,
    encoder: TextEncoder,
    vectors: EditVectors,
    subjects: Sequence[str | None],
    held_out: PseudoKnowledge,
    settings: FitSettings,
) -> tuple[FamiliarityNetwork, Calibration]:
    enrolled, familiar, unfamiliar, near = calibration_texts(held_out, settings.seed)
    if not familiar or not unfamiliar:
        raise MegError(
            "Too little pseudo-knowledge is left after taking out what belongs to the edits; give more of it "
            "(--pseudo) to calibrate the router."
        )

    def compute() -> Calibration:
        played = encoder.encode([fact.prompt for fact in enrolled]).to(vectors.codes.device)
        known = EditVectors.pack(torch.cat([vectors.unpack(), played]))
        texts = CalibrationSet(
            played,
            [fact.subject or None for fact in enrolled],
            read(encoder, familiar, known),
            read(encoder, [*unfamiliar, *near], known),
            [*familiar, *unfamiliar, *near],
            len(near),
        )
        total = training_steps(len(vectors) + len(enrolled), settings.familiarity)
        with stages.stage("Calibrating the router", total) as advance:
            return calibrate(vectors, subjects, texts, settings.familiarity, settings.seed, advance)

    def train() -> dict[str, Tensor]:
        with stages.stage("Training the router", training_steps(len(vectors), settings.familiarity)) as advance:
            network = train_familiarity(vectors.unpack(), settings.familiarity, settings.seed, advance)
        return network.state_dict()

    calibration = Calibration.from_json(work.json("calibration", lambda: compute().to_json()))
    network = FamiliarityNetwork(encoder.size, settings.familiarity).to(vectors.codes.device)
    network.load_state_dict(work.tensors("router", train, packed=True))
    return network.eval().requires_grad_(False), calibration


def _fit_generator(
    work: Workspace,
    stages: Stages,
    backbone: Backbone,
    weights: Tensor,
    conditions: Conditions,
    settings: FitSettings,
    answered: Callable[[WeightGenerator], float],
    processes: Processes,
) -> tuple[WeightGenerator, dict[str, Any]]:
    record: dict[str, Any] = {}

    def train() -> dict[str, Tensor]:
        steps = settings.generator.training_steps(len(weights))
        with stages.stage("Training the generator", steps) as advance:
            generator, history = train_generator(
                weights,
                conditions,
                backbone.hidden_size,
                settings.generator,
                settings.seed,
                answered,
                advance,
                checkpoint=work.checkpoint("generator"),
                processes=processes,
            )
        record.update(work.json("generator_training", lambda: asdict(history)))
        return generator.state_dict()

    size = conditions.queries.shape[1]
    generator = WeightGenerator(backbone.weight_size, size, settings.generator).to(weights.device)
    generator.load_state_dict(work.tensors("generator", train, packed=True))
    return generator.eval().requires_grad_(False), record or work.json("generator_training", dict)


def _absolute(base: str) -> str:
    """The base model's name as it can be found from anywhere: paths are made absolute."""
    return str(Path(base).resolve()) if Path(base).exists() else base
