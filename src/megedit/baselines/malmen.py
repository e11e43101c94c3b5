"""MALMEN: a hypernetwork, trained on other facts, makes one shift of each matrix out of the gradients of all edits.

Source: Tan et al. 2024, Massive Editing for Large Language Models via Meta Learning (arXiv 2311.04661). Of every matrix
that is edited, and every token j of an answer, two vectors are taken from the unedited model: the key u_j, which the
matrix reads there, and the gradient v_j of the loss at what it writes. The hypernetwork reads [u_j, v_j], normalised by
the mean and deviation of all that it has read so far, and returns [u'_j, v'_j]. The matrix's output at u_j should then
change by

    d_j = -eta (u_j . u'_j) v'_j

No single shift S of the matrix gives every key its d_j. With U and D holding all u_j and d_j in columns, S is the ridge
solution

    S = argmin |S U - D|^2 + lambda |S|^2 = D U^T (U U^T + lambda I)^-1

Matrices of one shape share a hypernetwork, a few blocks x + a * max(x A B + c, 0) + b, of which each matrix has its own
a and b, as it has its own eta and lambda. All of these are learnt. In a step of this training some facts are edited
together, and the loss is that of the same facts in another wording, plus the KL divergence from the unedited model on
queries that no edit is about:

    L = mean -log p_{W+S}(target | rephrase) + weight * mean KL(p_W || p_{W+S})

The model and the hypernetwork are differentiated apart. The shifted model, an ordinary model with other weights, is
passed backward for G = dL/dS, whatever its batches; then G goes back through the ridge solution and the hypernetwork:
dL/dD = G (U U^T + lambda I)^-1 U, and dL/dlambda = -<G, S (U U^T + lambda I)^-1>.

What the training sees: the shipped pseudo-facts, without any that belongs to an edited fact. Their answers are not
known, so each is given the target of an edit, of one with the same relation where there is any. The edits' prompts and
subjects are not trained on; their rephrases and neighbours serve only to leave pseudo-facts out. Half of the queries
that should stay are neighbours of the pseudo-facts and half are unrelated questions; as these have no answers either,
what is compared is the distribution of an answer's first token.

The paper trains on the whole training split of a data set, with as many edits a step as are made in the end, up to
thousands. The default here is a small part of that, about ten minutes for a model of 135M parameters on two CPU cores;
`meta_steps` and `meta_edits` make it longer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megedit.baselines.method import (
    Base,
    Batch,
    MatrixMethod,
    Weights,
    add_to,
    answer_logits,
    answer_losses,
    batches,
    inputs_of,
    oriented,
    outputs_of,
)
from megedit.baselines.ultraedit import Normalisation, answer_features
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.lm.batches import Example, tokenize
from megedit.pseudo.knowledge import PseudoKnowledge, load_pseudo_knowledge
from megedit.runtime.callbacks import Advance, no_progress

CHUNK = 1024  # rows that the hypernetwork reads at a time

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class MalmenSettings:
    """The matrices that are edited, the hypernetwork, and its training."""

    first: Annotated[float, "depth of the first FFN whose output matrix is edited: 0 the first, 1 the last"] = 0.82
    last: Annotated[float, "depth of the last one"] = 1.0
    rank: Annotated[int, "columns of A"] = 1920
    blocks: Annotated[int, "blocks of the hypernetwork"] = 2
    eta: Annotated[float, "size of the step before training"] = 1e-6
    meta_steps: Annotated[int, "training steps of the hypernetwork"] = 40
    meta_edits: Annotated[int, "pseudo-facts that are edited in one of them"] = 32
    meta_lr: Annotated[float, "Adam learning rate of the hypernetwork"] = 1e-5
    locality: Annotated[float, "weight of the KL divergence on queries that no edit is about"] = 1.0
    clip: Annotated[float, "length of the hypernetwork's gradient at most"] = 1.0
    batch_size: Annotated[int, "queries that the model is given at a time"] = 32


class Malmen(MatrixMethod):
    """Least squares on the output of a trained hypernetwork."""

    name: ClassVar[str] = "malmen"
    source: ClassVar[str] = "arXiv 2311.04661"
    settings_type: ClassVar[type[Any]] = MalmenSettings
    settings: MalmenSettings

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        matrices = self.matrices(range(base.layer_at(settings.first), base.layer_at(settings.last) + 1))
        examples = base.examples(edits)
        usable = [edit for edit, example in zip(edits, examples, strict=True) if example.refused is None]
        done = 0
        if usable:
            network = HyperNetwork(matrices, settings, self.seed).to(base.device)
            knowledge = load_pseudo_knowledge().without(edits)
            done = _train(network, Lessons(base, knowledge, usable, self.seed), matrices, settings, len(edits), advance)
            found = _features(base, examples, matrices, settings.batch_size)
            network.observe(found)
            with torch.no_grad():
                shifts = network(found)
            if not all(bool(shift.isfinite().all()) for shift in shifts):
                raise MegError("Training diverged: the shifts are not finite; try a smaller meta_lr.")
            for matrix, shift in zip(matrices, shifts, strict=True):
                add_to(matrix, shift)
        advance(len(edits) - done)


# ---------------------------------------------------------------------------------------------------
# The hypernetwork, and the shift


class Block(nn.Module):
    """A residual low-rank layer, the identity at its start; each matrix has its own `scale` and `shift`."""

    def __init__(self, size: int, rank: int, matrices: int, drawn: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(size, rank, generator=drawn))
        self.up = nn.Parameter(torch.zeros(rank, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(matrices, size))
        self.shift = nn.Parameter(torch.zeros(matrices, size))

    def forward(self, rows: Tensor, number: int) -> Tensor:
        """rows: float32 (rows, size), those of the matrix with this number; likewise what is returned."""
        inner = rows @ self.down @ self.up + self.bias  # (rows, size)
        # at the start it is 0 everywhere, where clamp lets a gradient through and relu would not
        return rows + self.scale[number] * inner.clamp(min=0) + self.shift[number]


class ShapeNetwork(nn.Module):
    """The hypernetwork of all matrices of one shape."""

    def __init__(self, inputs: int, outputs: int, matrices: int, settings: MalmenSettings, drawn: torch.Generator):
        super().__init__()
        self.sizes, self.norm = [inputs, outputs], Normalisation()
        self.blocks = nn.ModuleList(
            Block(inputs + outputs, settings.rank, matrices, drawn) for _ in range(settings.blocks)
        )
        self.eta = nn.Parameter(torch.full((matrices,), settings.eta))
        self.log_ridge = nn.Parameter(torch.zeros(matrices))  # logarithms of lambda

    def transformed(self, rows: Tensor, number: int) -> Tensor:
        """[u', v'] of the matrix with this number. rows: [u, v], float32 (tokens, inputs + outputs)."""
        changed = self.norm.normalised(rows)
        for block in self.blocks:
            changed = block(changed, number)
        return changed

    def differences(self, rows: Tensor, number: int) -> Tensor:
        """The changes d of a matrix's output: float32 (tokens, outputs). rows: [u, v], (tokens, inputs + outputs)."""
        keys, gradients = self.transformed(rows, number).split(self.sizes, 1)
        agreement = (rows[:, : self.sizes[0]] * keys).sum(1, keepdim=True)  # (tokens, 1)
        differences: Tensor = -self.eta[number] * agreement * gradients
        return differences

    def forward(self, rows: Tensor, number: int) -> Tensor:
        """The shift of a matrix: float64 (outputs, inputs). rows: [u, v], float32 (tokens, inputs + outputs)."""
        differences = torch.cat([self.differences(part, number) for part in rows.split(CHUNK)])
        return ridge_shift(rows[:, : self.sizes[0]], differences, self.log_ridge[number].double().exp())


class HyperNetwork(nn.Module):
    """The hypernetworks of some linear maps, one for each shape."""

    def __init__(self, matrices: Sequence[nn.Module], settings: MalmenSettings, seed: int) -> None:
        super().__init__()
        shapes = [(inputs_of(matrix), outputs_of(matrix)) for matrix in matrices]
        drawn = torch.Generator().manual_seed(seed)
        kinds = list(dict.fromkeys(shapes))
        self.networks = nn.ModuleList(ShapeNetwork(*shape, shapes.count(shape), settings, drawn) for shape in kinds)
        # of each matrix: its network, and its number there
        self._places = [(kinds.index(shape), shapes[:i].count(shape)) for i, shape in enumerate(shapes)]

    def observe(self, features: Sequence[Tensor]) -> None:
        """Take features into the statistics by which they are normalised; as for `forward`."""
        for rows, (kind, _) in zip(features, self._places, strict=True):
            self._network(kind).norm.add(rows)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The shift of each matrix: float64 (outputs, inputs).

        features: of each matrix, float32 (tokens, inputs + outputs).
        """
        return [self._network(kind)(rows, number) for rows, (kind, number) in zip(features, self._places, strict=True)]

    def _network(self, kind: int) -> ShapeNetwork:
        network = self.networks[kind]
        assert isinstance(network, ShapeNetwork)
        return network


def ridge_shift(keys: Tensor, differences: Tensor, ridge: Tensor) -> Tensor:
    """S (outputs, inputs) with S (U U^T + ridge I) = D U^T, in double precision; it can be differentiated.

    keys: U^T (tokens, inputs). differences: D^T (tokens, outputs). ridge: ().
    """
    keys, differences = keys.double(), differences.double()
    if len(keys) < keys.shape[1]:  # the same by the smaller system: U^T (U U^T + r I)^-1 = (U^T U + r I)^-1 U^T
        solved: Tensor = torch.linalg.solve(_with_ridge(keys @ keys.T, ridge), differences)  # (tokens, outputs)
        return solved.T @ keys
    solved = torch.linalg.solve(_with_ridge(keys.T @ keys, ridge), keys.T @ differences)  # (inputs, outputs)
    return solved.T


def _with_ridge(products: Tensor, ridge: Tensor) -> Tensor:
    return products + ridge * torch.eye(len(products), dtype=products.dtype, device=products.device)


# ---------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True)
class Lesson:
    """The queries of one training step: facts to edit, the same in other wordings, and what should stay as it is."""

    edits: list[Example]
    asked: list[Example]
    others: list[Example]  # with a first answer token that stands for any


class Lessons:
    """Pseudo-facts with made-up targets."""

    def __init__(self, base: Base, knowledge: PseudoKnowledge, edits: Sequence[Edit], seed: int) -> None:
        """edits: whose targets the facts are given. Raises MegError where no pseudo-fact or no question is left."""
        if not (knowledge.facts and knowledge.unrelated):
            raise MegError("MALMEN trains on facts that are not edited, and the edits leave none of the shipped ones.")
        self.base, self._knowledge, self._rng = base, knowledge, random.Random(seed)
        self._targets: dict[str | None, list[str]] = {None: [edit.target for edit in edits]}
        for edit in edits:
            if edit.relation is not None:
                self._targets.setdefault(edit.relation, []).append(edit.target)

    def draw(self, count: int) -> Lesson:
        """A lesson with so many facts, or all that there are."""
        rng, lesson = self._rng, Lesson([], [], [])
        for fact in rng.sample(self._knowledge.facts, min(count, len(self._knowledge.facts))):
            target = rng.choice(self._targets.get(fact.relation) or self._targets[None])
            prompt, rephrase = rng.sample((fact.prompt, *fact.rephrases), 2)
            near = rng.random() < 0.5 and fact.neighbours
            other = rng.choice(fact.neighbours if near else self._knowledge.unrelated)
            edited, asked, stays = (self._example(text, target) for text in (prompt, rephrase, other))
            if not (edited.refused or asked.refused or stays.refused):
                lesson.edits.append(edited)
                lesson.asked.append(asked)
                lesson.others.append(Example(stays.prompt, stays.answer[:1]))
        for examples in (lesson.edits, lesson.asked, lesson.others):  # rows of a batch are then of similar length
            examples.sort(key=lambda example: len(example.prompt) + len(example.answer))
        return lesson

    def _example(self, prompt: str, target: str) -> Example:
        return tokenize(self.base.tokenizer, self.base.template, Edit(prompt, prompt, target))


def _train(
    network: HyperNetwork,
    lessons: Lessons,
    matrices: Sequence[Any],
    settings: MalmenSettings,
    edits: int,
    advance: Advance,
) -> int:
    """Train the hypernetwork. Returns for how many of the edits `advance` was called.

    Raises MegError where the loss diverges.
    """
    base, optimizer, done = lessons.base, torch.optim.Adam(network.parameters(), lr=settings.meta_lr), 0
    for step in range(1, settings.meta_steps + 1):
        lesson = lessons.draw(settings.meta_edits)
        if lesson.edits:
            features = _features(base, lesson.edits, matrices, settings.batch_size)
            network.observe(features)
            shifts = network(features)
            losses = _losses(base, lesson, settings)
            loss, gradients = gradients_at(matrices, [shift.detach() for shift in shifts], losses)
            if not math.isfinite(loss):
                raise MegError(f"Training diverged: the loss of step {step} is {loss}; try a smaller meta_lr.")
            optimizer.zero_grad()
            torch.autograd.backward(shifts, [gradient.to(shifts[0]) for gradient in gradients])
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
        share = edits * step // (settings.meta_steps + 1)  # the edits themselves count as one step
        advance(share - done)
        done = share
    return done


def gradients_at(
    matrices: Sequence[Any], shifts: Sequence[Tensor], losses: Iterable[Loss]
) -> tuple[float, list[Tensor]]:
    """The sum of losses of a model whose matrices are shifted, and its gradients with respect to the shifts.

    shifts: (outputs, inputs) of each matrix. losses: each is called once, on the shifted model. Returns float32
    (outputs, inputs) for each matrix, which is then as it was before.
    """
    parameters = [matrix.weight for matrix in matrices]
    weights = Weights(parameters)
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    total = 0.0
    required = [parameter.requires_grad for parameter in parameters]
    try:
        for matrix, shift in zip(matrices, shifts, strict=True):
            add_to(matrix, shift)
            matrix.weight.requires_grad_(True)
        for compute in losses:
            loss = compute()
            for whole, part in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                whole += part
            total += loss.item()
    finally:
        for parameter, before in zip(parameters, required, strict=True):
            parameter.requires_grad_(before)
        weights.restore()
    return total, [oriented(matrix, whole) for matrix, whole in zip(matrices, sums, strict=True)]


def _features(base: Base, examples: Sequence[Example], matrices: Sequence[nn.Module], batch_size: int) -> list[Tensor]:
    """[u, v] of each matrix at all answer tokens of the examples that have any: float32 (tokens, inputs + outputs)."""
    parts = [answer_features(base, batch, matrices) for batch in batches(base, examples, batch_size)]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def _losses(base: Base, lesson: Lesson, settings: MalmenSettings) -> list[Loss]:
    """The parts of a lesson's loss, each of one batch; called here is the unedited model."""
    losses: list[Loss] = [
        partial(_edit_loss, base, batch, 1 / len(lesson.asked))
        for batch in batches(base, lesson.asked, settings.batch_size)
    ]
    for batch in batches(base, lesson.others, settings.batch_size):
        with torch.no_grad():
            before = answer_logits(base.model, batch).float().log_softmax(-1)  # (rows, 1, vocabulary)
        losses.append(partial(_locality_loss, base, batch, before, settings.locality / len(lesson.others)))
    return losses


def _edit_loss(base: Base, batch: Batch, weight: float) -> Tensor:
    return weight * answer_losses(answer_logits(base.model, batch), batch.labels).sum()


def _locality_loss(base: Base, batch: Batch, before: Tensor, weight: float) -> Tensor:
    now = answer_logits(base.model, batch).float().log_softmax(-1)  # (rows, 1, vocabulary)
    return weight * F.kl_div(now, before, log_target=True, reduction="sum")
