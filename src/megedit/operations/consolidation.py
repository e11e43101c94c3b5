"""Consolidation: teaching the edits that were added since the fit to familiarity network and generator.

Both go on from where they are, on the new edits and on replayed old ones; what it costs goes by the number of new ones.
An edit whose answer the generator does not give afterwards, new or old, is answered with its collected neuron. The
weights of edits that are no longer in force are dropped for good, and the generator learns a silent neuron in their
place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter
from megedit.adapter.change import changing
from megedit.adapter.folder import describe
from megedit.adapter.ledger import EditRecord
from megedit.adapter.weights import load_model, save_model
from megedit.checks import ANSWERED_LEAD, answer_check
from megedit.collect import answer_leads_of, prepare_all
from megedit.errors import MegError
from megedit.generator import WeightGenerator, far_off, train_generator
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Prepared, tokenize
from megedit.model import MegModel
from megedit.operations.operations import Outcome
from megedit.operations.parts import Parts
from megedit.router.familiarity import FamiliarityNetwork, train_familiarity, training_steps
from megedit.router.index import EditVectors
from megedit.runtime.progress import Stages

STEPS, PASSES = 400, 400  # of the generator: at least; over the new edits, where these are more
CHECK_EVERY = 50  # steps
SLOWER = 4  # times smaller than in the fit is the learning rate
CHECKED = 256  # old edits, and new ones, on which the generator is checked while it is trained


def consolidate(
    folder: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    model: MegModel | None = None,
) -> Outcome:
    """Absorb the edits that are served from collected neurons, and drop the weights of edits that are gone.

    base: where the base model is now, if it was moved. model: as `add` takes it. Raises MegError when there is nothing
    to do, or the adapter cannot be changed.
    """
    folder, parts = Path(folder), Parts.of(base, dtype, device, stages, model)
    with changing(folder, "consolidate") as change:
        former = change.model[0]
        for path in folder.glob("model-*"):  # what a consolidation that was killed has left
            if path.name != former:
                path.unlink()
        adapter = parts.adapter(folder)
        new = [record for record in adapter.active if not record.generated]
        gone = [record for record in adapter.records if record.status == "removed" and record.generated]
        if not new and not change.droppable():
            raise MegError("There is nothing to consolidate: every edit is absorbed, and no weights are left over.")
        absorbed = lost = list[EditRecord]()
        if new or gone:
            base_model, tokenizer = parts.base_model(adapter)
            numbers = adapter.records.having("active", "removed").numbers
            vectors = dict(zip(numbers, change.vectors(numbers), strict=True))
            backbone = Backbone(base_model, adapter.config.layer)
            run = Consolidation(adapter, new, gone, vectors, backbone, tokenizer, parts.stages, parts.dtype)
            known = load_model(folder, change, adapter.config, parts.device, parts.dtype)  # uncast, to be trained on
            learned = run.learn(*known)
            change.set_model(*save_model(folder, change.next, *learned))
            absorbed, lost = run.check(load_model(folder, change, adapter.config, parts.device, parts.dtype)[1])
            change.set_generated([record.number for record in absorbed], True)
            change.set_generated([record.number for record in (*lost, *gone)], False)
        change.drop_weights()
        result = {
            "absorbed": len(absorbed),
            "not absorbed": len(new) - len(absorbed),
            "lost": len(lost),
            "forgotten": len(gone),
        }
        change.note(**result)
        current, outcome = change.model[0], Outcome(change.next, (), result=result)
    if current != former:
        (folder / former).unlink(missing_ok=True)
    describe(folder)
    return outcome


class Consolidation:
    """Training on: the edits that the generator knows, new ones, and removed ones that it is to forget.

    vectors: as the ledger keeps them, by number of the edit.
    """

    def __init__(
        self,
        adapter: Adapter,
        new: list[EditRecord],
        gone: list[EditRecord],
        vectors: Mapping[int, bytes],
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        stages: Stages,
        dtype: torch.dtype | None,
    ) -> None:
        self.adapter, self.backbone, self.stages, self.dtype = adapter, backbone, stages, dtype
        self.old, self.new, self.gone = [record for record in adapter.active if record.generated], new, gone
        self._tokenizer, self._seed = tokenizer, adapter.config.settings.seed
        of_edits = [vectors[record.number] for record in (*self.old, *new, *gone)]
        packed, self.owners = EditVectors.from_bytes(of_edits, adapter.config.encoder_size)
        self.vectors = packed.unpack().to(adapter.router.vectors.codes.device)  # (vectors, C)

    def learn(
        self, network: FamiliarityNetwork, generator: WeightGenerator
    ) -> tuple[FamiliarityNetwork, WeightGenerator]:
        """Familiarity network and generator, each gone on from where it was."""
        config = self.adapter.config
        old, known = self._rows(len(self.old)), self._rows(len(self.old) + len(self.new))
        steps = training_steps(2 * (known - old), config.settings.familiarity) if self.new else 0
        if self.new:
            with self.stages.stage("Training the router", steps) as advance:
                network = train_familiarity(
                    self.vectors[:known],
                    config.settings.familiarity,
                    self._seed,
                    advance,
                    network,
                    known - old,
                    dtype=self.dtype,
                )
        changed = max(len(self.vectors) - old, 1)
        settings = replace(
            config.settings.generator,
            min_steps=max(STEPS, PASSES * changed * 2 // config.settings.generator.edits_a_step(len(self.vectors))),
            passes=0,
            even_tail=1.0,
            hard_example_weight=max(config.settings.generator.hard_example_weight, old / changed),
            check_every=CHECK_EVERY,
            lr=config.settings.generator.lr / SLOWER,
        )
        silent = generator.mean.clone()
        silent[-config.hidden_size :] = 0
        weights = self.adapter.neurons([*self.old, *self.new]).to(silent.device)
        weights = torch.cat([weights, silent.expand(len(self.gone), -1)])[self.owners.to(silent.device)]
        rng, spans = random.Random(self._seed), (range(old), range(old, known))
        rows = [row for span in spans for row in rng.sample(span, min(len(span), CHECKED))]
        answered = answer_check(self.backbone, self._batches(rows), weights[rows], self.vectors[rows])
        with self.stages.stage("Training the generator", settings.min_steps) as advance:
            generator, _ = train_generator(
                weights,
                self.vectors,
                config.hidden_size,
                settings,
                self._seed,
                answered,
                advance,
                generator,
                compute_dtype=self.dtype,
            )
        return network, generator

    def check(self, generator: WeightGenerator) -> tuple[list[EditRecord], list[EditRecord]]:
        """New edits that the generator gives, and old ones that it gives no longer."""
        first, last = self._rows(len(self.old)), self._rows(len(self.old) + len(self.new))
        with self.stages.stage("Checking generated neurons", last - first) as advance:
            batches = self._batches(range(first, last))
            leads = answer_leads_of(self.backbone, batches, generator.sample(self.vectors[first:last]), advance)
            failed = set(self.owners[first:last][leads < ANSWERED_LEAD].tolist())
            absorbed = [record for i, record in enumerate(self.new, len(self.old)) if i not in failed]
            weights = self.adapter.neurons(self.old).to(self.vectors.device)[self.owners[:first]]
            wrong = (
                far_off(generator, weights, self.vectors[:first]).cpu() if first else torch.zeros(0, dtype=torch.bool)
            )
            lost = self.owners[:first][wrong].unique().tolist()
        return absorbed, [self.old[i] for i in lost]

    def _rows(self, edits: int) -> int:
        """The number of vectors that the first so many edits have."""
        return int((self.owners < edits).sum())

    def _batches(self, rows: Sequence[int]) -> Iterator[Prepared]:
        records, template = [*self.old, *self.new], self.adapter.config.template
        edits = [records[int(self.owners[row])].edit for row in rows]
        examples = [tokenize(self._tokenizer, template, edit) for edit in edits]
        return prepare_all(
            self.backbone, examples, self.adapter.config.settings.collection, self._tokenizer.pad_token_id
        )
