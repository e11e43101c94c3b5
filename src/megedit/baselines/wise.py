"""WISE: a side memory beside the output matrix of one FFN, and a router that chooses between the two.

Source: Wang et al. 2024, WISE (arXiv 2405.14768). W is the matrix and W' = W + D the side memory, which starts as a
copy. With a(t) the input of the matrix at token t, the activation of a prompt x is the mean over its tokens of

    Delta(x) = |D a(t)|

Beside -log p(target | prompt) with W' in place of W, D minimises, over edits e and unrelated texts u,

    max(0, Delta(u) - alpha) + max(0, beta - Delta(e)) + max(0, gamma - Delta(e) + Delta(u))

The edits are divided into shards. Each has a D of its own, trained where a random mask lets it be other than 0; TIES
(Yadav et al. 2023, arXiv 2306.01708) merges them. A prompt gets the side memory, at its own and its answer's tokens, if
its activation reaches epsilon, the smallest one of an edit, or the share of it that the public implementation takes.

What differs from the paper: edits are trained in epochs of mini-batches, by AdamW, and not one after the other by SGD,
for speed and because their order means nothing here. The paper's margins of 5, 20 and 10 are lengths in models of 7B
parameters; here they are in the same proportions, in units of the median length of W a(t) in unrelated texts. The limit
on each number of D is left out, for it is never reached by such steps, and so are prompts behind generated openings and
the replay of earlier edits. The tokens with which a template begins every prompt say nothing and do not count. The
decision is taken at the prompt and holds for its answer. There is one merged memory, however many edits there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from megedit.baselines.ft import FineTuningSettings, train
from megedit.baselines.locate import states_at
from megedit.baselines.method import Base, Batch, Method, inputs_of, output_matrix, outputs_of
from megedit.baselines.prompts import Place, PromptSystem, hooked, unrelated_prompts
from megedit.edits import Edit
from megedit.evaluate.systems import System
from megedit.lm.batches import Example, common_prefix, pad
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class WiseSettings(FineTuningSettings):
    """The side memory, its router and its training."""

    depth: Annotated[float, "of the layer that has a side memory: 0 the first, 1 the last"] = 0.87
    epochs: Annotated[int, "passes over the edits of a shard at most"] = 30
    lr: Annotated[float, "AdamW learning rate"] = 2e-4
    shards: Annotated[int, "k: parts of the edits, each trained on a mask of its own"] = 2
    mask: Annotated[float, "rho: share of the matrix that a shard may change"] = 0.2
    density: Annotated[float, "share of a shard's changes, the largest ones, that TIES keeps"] = 0.53
    alpha: Annotated[float, "activation of unrelated texts at most, in lengths of the matrix's output"] = 0.25
    beta: Annotated[float, "activation of edits at least, in the same unit"] = 1.0
    gamma: Annotated[float, "lead of an edit's activation before that of an unrelated text, in the same unit"] = 0.5
    epsilon: Annotated[float, "share of the smallest activation of an edit, from which on the memory is used"] = 0.88
    unrelated: Annotated[int, "unrelated texts to train on"] = 256


class Wise(Method):
    """The side memory and its router."""

    name: ClassVar[str] = "wise"
    source: ClassVar[str] = "arXiv 2405.14768"
    settings_type: ClassVar[type[FineTuningSettings]] = WiseSettings
    settings: WiseSettings
    memory: SideMemory | None = None
    _hook: Any = None

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, settings = self.base, self.settings
        _, matrix = output_matrix(base.layers[base.layer_at(settings.depth)])
        examples = base.examples(edits)
        usable = [example for example in examples if example.refused is None]
        advance(len(examples) - len(usable))
        if not usable:
            return
        others = unrelated_prompts(base, edits, settings.unrelated, self.seed)
        shared = common_prefix([*(example.prompt for example in usable), *others])
        visit = Visit(base, matrix, shared, settings.batch_size)
        router = Router(settings, list(visit.keys(others)), visit.unit(others), shared, random.Random(self.seed))
        changes = [
            self._trained(matrix, shard, number, router, advance)
            for number, shard in enumerate(shards(usable, settings.shards))
        ]
        change = ties(torch.stack(changes), settings.density).to(matrix.weight.dtype)  # (outputs, inputs)
        prompts = [example.prompt for example in usable]
        smallest = min(float(activation(F.linear(keys.inputs, change), keys.own).min()) for keys in visit.keys(prompts))
        self.memory = SideMemory(change, smallest * settings.epsilon, shared)
        self._hook = matrix.register_forward_hook(self.memory.hook)

    def _trained(
        self, matrix: Any, examples: Sequence[Example], number: int, router: Router, advance: Advance
    ) -> Tensor:
        """The D of a shard: float32 (outputs, inputs), 0 outside of its mask."""
        shape, drawn = (outputs_of(matrix), inputs_of(matrix)), torch.Generator().manual_seed(self.seed + number)
        mask = (torch.rand(shape, generator=drawn) < self.settings.mask).to(matrix.weight.device)  # (outputs, inputs)
        free = torch.zeros(shape, device=mask.device)
        added: list[Tensor] = []

        def change() -> Tensor:
            return (free * mask).to(matrix.weight.dtype)  # (outputs, inputs)

        def add(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            added[:] = [F.linear(args[0], change())]  # (rows, columns, outputs)
            return output + added[0]

        with hooked(matrix, add):
            train(
                self.base,
                examples,
                [free],
                self.base.layer_at(self.settings.depth),
                self.settings,
                self.seed,
                advance,
                lambda batch: router.loss(batch, added[0], change()),
            )
        return free * mask

    def restore(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self.memory = None

    @property
    def stored_bytes(self) -> int:
        return self.memory.bytes if self.memory is not None else 0

    def system(self) -> System:
        return PromptSystem(self.base, self.name, self.memory)


class SideMemory(Place):
    """The merged memory beside a matrix, and the activation from which on a prompt gets it.

    change: D (outputs, inputs). shared: the tokens with which every prompt begins.
    """

    def __init__(self, change: Tensor, threshold: float, shared: int) -> None:
        self.change, self.threshold, self.shared = change, threshold, shared

    @property
    def bytes(self) -> int:
        """The size of the memory, and 4 bytes for the threshold."""
        return self.change.numel() * self.change.element_size() + 4

    def hook(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add D a where the prompt is a familiar one: the forward hook of the matrix."""
        if self.prompts is None or (self.chosen is not None and not self.chosen.any()):
            return None
        added = F.linear(args[0], self.change).view(len(self.prompts), -1, output.shape[-1])  # (rows, columns, outputs)
        if self.chosen is None:
            own = own_tokens(self.prompts, self.shared)  # (rows, width)
            self.chosen = activation(added[:, : own.shape[1]], own) >= self.threshold  # (rows,)
        before = output.view(added.shape)  # (rows, columns, outputs)
        return torch.where(self.chosen[:, None, None], before + added, before).view(output.shape)


# ---------------------------------------------------------------------------------------------------
# Activations


@dataclass(frozen=True)
class Keys:
    """The input of a matrix in a batch of prompts. inputs: (rows, columns, inputs). own: bool (rows, columns)."""

    inputs: Tensor
    own: Tensor


@dataclass(frozen=True)
class Visit:
    """Reads what enters a matrix. shared: the tokens with which every prompt begins."""

    base: Base
    matrix: Any
    shared: int
    batch_size: int

    @torch.no_grad()
    def keys(self, prompts: Sequence[Sequence[int]]) -> Iterator[Keys]:
        """The matrix's input in prompts, batch by batch; the model is run up to there."""
        for first in range(0, len(prompts), self.batch_size):
            rows = prompts[first : first + self.batch_size]
            batch = pad(rows, self.base.tokenizer.pad_token_id).to(self.base.device)
            entered = states_at(self.base, self.matrix, batch.inputs(0, batch.width), inputs=True)
            yield Keys(entered, own_tokens(batch.mask, self.shared))

    @torch.no_grad()
    def unit(self, prompts: Sequence[Sequence[int]]) -> float:
        """The median length of the matrix's output at the tokens of prompts; 1 where there are none."""
        lengths = [self.matrix(keys.inputs).float().norm(dim=-1)[keys.own] for keys in self.keys(prompts)]  # (tokens,)
        return float(torch.cat(lengths).median()) if lengths else 1.0


@dataclass(frozen=True)
class Router:
    """The margins by which edits and unrelated texts are told apart, and the latter's keys in batches."""

    settings: WiseSettings
    others: Sequence[Keys]
    unit: float
    shared: int
    rng: random.Random

    def loss(self, batch: Batch, added: Tensor, change: Tensor) -> Tensor:
        """The margin loss of a batch of edits, to whose columns `added` was added, and a drawn one of other texts.

        added: D a (rows, columns, outputs), or flat. change: D (outputs, inputs).
        """
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)  # (columns,)
        own = own_tokens(batch.mask, self.shared) & (columns < batch.answer_start[:, None])  # (rows, columns)
        edits = activation(added.view(*batch.ids.shape, -1), own)  # (rows,)
        if not self.others:
            return (self.settings.beta - edits / self.unit).clamp(min=0).mean()
        keys = self.rng.choice(self.others)
        others = activation(F.linear(keys.inputs, change), keys.own)  # (texts,)
        margins = self.settings.alpha, self.settings.beta, self.settings.gamma
        return margin_loss(edits / self.unit, others / self.unit, *margins)


def own_tokens(mask: Tensor, shared: int) -> Tensor:
    """True at the tokens behind those that all prompts begin with: bool, like the mask, int64 (rows, columns)."""
    return (mask == 1) & (mask.cumsum(1) > shared)


def activation(added: Tensor, own: Tensor) -> Tensor:
    """The mean length of D a over each row's own tokens: float32 (rows,).

    added: (rows, columns, outputs). own: bool (rows, columns).
    """
    lengths: Tensor = added.float().norm(dim=-1) * own  # (rows, columns)
    return lengths.sum(1) / own.sum(1).clamp(min=1)


def margin_loss(edits: Tensor, others: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """The three hinges, each a mean over the edits, the other texts, or all pairs.

    edits: the activations of edits (rows,). others: those of unrelated texts (texts,).
    """
    silent = (others - alpha).clamp(min=0).mean()
    active = (beta - edits).clamp(min=0).mean()
    apart = (gamma - (edits[:, None] - others[None])).clamp(min=0).mean()  # of (rows, texts)
    return silent + active + apart


# ---------------------------------------------------------------------------------------------------
# Shards


def shards(examples: Sequence[Example], count: int) -> list[Sequence[Example]]:
    """The examples in their order, in so many parts of about the same size; fewer where there are not as many."""
    count = min(count, len(examples))
    return [examples[len(examples) * i // count : len(examples) * (i + 1) // count] for i in range(count)]


def ties(changes: Tensor, density: float) -> Tensor:
    """Merge changes (shards, ...) of the same weights: trim, elect a sign for each weight, average what agrees.

    density: the share of each change's numbers, the largest ones, that is kept. Returns one change (...).
    """
    size = changes[0].numel()
    dropped = size - math.ceil(density * size)
    flat = changes.flatten(1).clone()  # (shards, size)
    if dropped:
        smallest = flat.abs().argsort(dim=1)[:, :dropped]  # (shards, dropped)
        flat.scatter_(1, smallest, 0.0)
    elected = flat.sum(0).sign()  # (size,)
    agrees = (flat.sign() == elected) & (elected != 0)  # (shards, size)
    merged = (flat * agrees).sum(0) / agrees.sum(0).clamp(min=1)  # (size,)
    return merged.view(changes.shape[1:])
