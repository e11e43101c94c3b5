"""Training the weight generator: balanced batches, weight average, stopped by what counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from megedit.generator.diffusion import WeightGenerator
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.checkpoint import NOWHERE, Checkpoint, Run, cosine, set_rate
from megedit.runtime.device import mixed_precision
from megedit.runtime.processes import ALONE, Processes
from megedit.runtime.tensors import distinct_rows
from megedit.settings import GeneratorSettings

LAST_RATE = 1 / 20  # of the learning rate, to which it falls along a cosine
CHECKS = 20  # at most, so that checking, which samples every edit, takes no more than a fixed part of the training
FAR_OFF = 0.5  # mean squared error of standardised weights, whose variance is 1


@dataclass(frozen=True)
class TrainingRecord:
    """How training went: steps taken, mean loss since the last check, share of edits answered at each check."""

    steps: int
    losses: tuple[float, ...]
    answered: tuple[float, ...]


def train_generator(
    weights: Tensor,
    vectors: Tensor,
    hidden_size: int,
    settings: GeneratorSettings,
    seed: int,
    answered: Callable[[WeightGenerator], float],
    progress: Advance = no_progress,
    start: WeightGenerator | None = None,
    checkpoint: Checkpoint = NOWHERE,
    processes: Processes = ALONE,
) -> tuple[WeightGenerator, TrainingRecord]:
    """Learn weights (float32 (edits, L)) from the vectors of the edits' queries (float32 (edits, C)).

    A neuron that few edits share is drawn more often than its edits are (`settings.rarity_power`); drawn evenly, it
    would be learned last. From the first check in the last part of the steps on, edits are drawn evenly, but those
    whose sampled neuron is still far off more often.

    start: a generator that knows most of the edits already; training goes on from there, and settles at once.
    answered: the share of edits whose neuron, sampled from the given generator, gives the edit's answer. Training
    stops at two checks in a row at 1.0, or at `settings.training_steps`; the sampler checked is the one that ships.
    checkpoint: keeps the state of the training at every check. The rows of a batch are divided among the processes.
    Returns the averaged generator (evaluation mode, best check) and the record.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = WeightGenerator(weights.shape[1], vectors.shape[1], settings).to(weights.device)
        if start is None:
            generator.fit_scales(weights, vectors, hidden_size, seed)
        else:
            generator.load_state_dict(start.state_dict())
        average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        optimizer = torch.optim.AdamW(generator.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
        total = settings.training_steps(len(weights))
        every = max(settings.check_every, math.ceil(total / CHECKS))
        losses: list[float] = []
        shares: list[float] = []
        best = copy.deepcopy(generator)
        modules = {"generator": generator, "average": average, "best": best}
        run, first = Run(modules, optimizer, rng), 1

        def settled(shipped: WeightGenerator) -> Tensor:
            return 1 + (settings.hard_example_weight - 1) * far_off(shipped, weights, vectors).float()

        running, odds = 0.0, neuron_frequencies(weights) ** -settings.rarity_power if start is None else settled(start)
        if state := checkpoint.load():
            run.restore(state)
            first, odds = int(state["step"]) + 1, state["odds"]
            losses, shares = state["losses"].tolist(), state["shares"].tolist()
            progress(first - 1)
        for step in range(first, total + 1):
            set_rate(optimizer, settings.lr * cosine(step - 1, total, LAST_RATE))
            batch = torch.multinomial(odds, settings.batch_size, replacement=True, generator=rng)
            with mixed_precision(weights.device):
                loss = generator.loss(weights[batch], vectors[batch], rng, processes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            processes.average_gradients(generator.parameters())
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(generator)
            running += loss.item()
            progress(1)
            if step % every == 0 or step == total:
                losses.append(running / (step - every * len(losses)))
                running = 0.0
                shipped = cast(WeightGenerator, average.module)
                share = answered(shipped.eval())
                if not shares or share >= max(shares):
                    best.load_state_dict(shipped.state_dict())
                shares.append(share)
                if step == total or (len(shares) > 1 and shares[-1] == shares[-2] == 1.0):
                    break
                if step >= (1 - settings.even_tail) * total:
                    odds = settled(shipped)
                lists = {"losses": torch.tensor(losses).double(), "shares": torch.tensor(shares).double()}
                checkpoint.save(run.state(step=torch.tensor(step), odds=odds, **lists))
    return best.eval().requires_grad_(False), TrainingRecord(step, tuple(losses), tuple(shares))


def far_off(generator: WeightGenerator, weights: Tensor, vectors: Tensor) -> Tensor:
    """Whether what is sampled for a query differs from its weights by more than half their variance: bool (edits,).

    Nearly all such neurons, and hardly any others, fail to give the answer. On the CPU.
    """
    error = (generator.standardise(generator.sample(vectors)) - generator.standardise(weights)).square().mean(1)
    return (error > FAR_OFF).cpu()


def neuron_frequencies(weights: Tensor) -> Tensor:
    """How many of the edits have the same neuron: float32 (edits,), on the CPU."""
    _, place = distinct_rows(weights)
    return place.bincount()[place.long()].float()
