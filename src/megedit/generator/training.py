"""Training the weight generator: batches that favour rare neurons, a weight average, stopped by what counts."""

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
from megedit.runtime.processes import ALONE, Processes
from megedit.settings import GeneratorSettings

LAST_RATE = 1 / 20  # of the learning rate, to which it falls along a cosine
SMALLEST_BATCH = 32  # however few the edits are; more rows of the same edits would teach nothing new
CHECKS = 20  # at most, so that checking, which samples every edit, takes no more than a fixed part of the training
MISSED_AT_ONCE = 4096  # edits; bounds the memory of comparing
FAR_OFF = 0.5  # mean squared error of standardised weights, whose variance is 1


@dataclass(frozen=True)
class TrainingHistory:
    """The course of a training: steps taken, mean loss since the last check, share of edits answered at each check."""

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
    compute_dtype: torch.dtype | None = None,
) -> tuple[WeightGenerator, TrainingHistory]:
    """Learn weights (float32 (edits, L)) from the vectors of the edits' queries (float32 (edits, C)).

    A neuron that few edits share is drawn more often than its edits are (`settings.rarity_power`); drawn evenly, it
    would be learned last. From the first check in the last part of the steps on, edits are drawn evenly, but those
    whose sampled neuron is still far off more often.

    start: a generator that knows most of the edits already; training goes on from there, in its last part at once.
    answered: the share of edits whose neuron, sampled from the given generator, gives the edit's answer. Training
    stops at two checks in a row at 1.0, or at `settings.training_steps`; the sampler checked is the one that ships.
    checkpoint: keeps the state of the training at every check. The rows of a batch are divided among the processes.
    compute_dtype: as for `WeightGenerator`. Returns the averaged generator (evaluation mode, best check).
    """
    rng = torch.Generator(weights.device).manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = WeightGenerator(weights.shape[1], vectors.shape[1], settings, compute_dtype).to(weights.device)
        if start is None:
            generator.fit_scales(weights, vectors, hidden_size, seed)
            odds = neuron_frequencies(weights).to(weights.device) ** -settings.rarity_power  # (edits,)
        else:
            generator.load_state_dict(start.state_dict())
            odds = _tail_odds(start, weights, vectors, settings)
        return _train(generator, weights, vectors, odds, settings, rng, answered, progress, checkpoint, processes)


def _train(
    generator: WeightGenerator,
    weights: Tensor,
    vectors: Tensor,
    odds: Tensor,
    settings: GeneratorSettings,
    rng: torch.Generator,
    answered: Callable[[WeightGenerator], float],
    progress: Advance,
    checkpoint: Checkpoint,
    processes: Processes,
) -> tuple[WeightGenerator, TrainingHistory]:
    """Train a generator on edits that are drawn at these odds (float32 (edits,)) at first."""
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    shipped, best = cast(WeightGenerator, average.module), copy.deepcopy(generator)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
    run = Run({"generator": generator, "average": average, "best": best}, optimizer, rng)
    total = settings.training_steps(len(weights))
    size = min(settings.edits_a_step(len(weights)), max(len(weights), SMALLEST_BATCH))
    every = max(settings.check_every, math.ceil(total / CHECKS))
    first, losses, shares = 1, list[float](), list[float]()
    if state := checkpoint.load():
        run.restore(state)
        first, odds = int(state["step"]) + 1, state["odds"].to(weights.device)
        losses, shares = state["losses"].tolist(), state["shares"].tolist()
        progress(first - 1)
    running = torch.zeros((), device=weights.device)  # kept there: to read it is to wait for the GPU
    for step in range(first, total + 1):
        # draw
        batch = torch.multinomial(odds, size, replacement=True, generator=rng)  # (B,)
        # step
        set_rate(optimizer, settings.lr * cosine(step - 1, total, LAST_RATE))
        running += _step(generator, optimizer, weights[batch], vectors[batch], rng, processes)
        average.update_parameters(generator)
        progress(1)
        if step % every and step != total:
            continue
        # check: do sampled neurons answer?
        losses.append(running.item() / (step - every * len(losses)))
        running.zero_()
        shares.append(answered(shipped.eval()))
        if shares[-1] == max(shares):
            best.load_state_dict(shipped.state_dict())
        if step == total or shares[-2:] == [1.0, 1.0]:
            break
        # in the last part of the steps: draw the wrong ones more often
        if step >= (1 - settings.even_tail) * total:
            odds = _tail_odds(shipped, weights, vectors, settings)
        lists = {"losses": torch.tensor(losses).double(), "shares": torch.tensor(shares).double()}
        checkpoint.save(run.state(step=torch.tensor(step), odds=odds, **lists))
    return best.eval().requires_grad_(False), TrainingHistory(step, tuple(losses), tuple(shares))


def _step(
    generator: WeightGenerator,
    optimizer: torch.optim.Optimizer,
    weights: Tensor,
    vectors: Tensor,
    rng: torch.Generator,
    processes: Processes,
) -> Tensor:
    """One step on a batch (float32 (B, L) and (B, C)); returns its loss, a number on their device."""
    loss = generator.loss(weights, vectors, rng, processes)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    processes.average_gradients(generator.parameters())
    torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _tail_odds(generator: WeightGenerator, weights: Tensor, vectors: Tensor, settings: GeneratorSettings) -> Tensor:
    """The odds at which edits are drawn in the last part of the training: float32 (edits,), on their device."""
    return 1 + (settings.hard_example_weight - 1) * far_off(generator, weights, vectors).float().to(weights.device)


def far_off(generator: WeightGenerator, weights: Tensor, vectors: Tensor) -> Tensor:
    """True where the weights sampled for a query miss its own by more than half their variance: bool (edits,), CPU.

    Nearly all such neurons, and hardly any others, fail to give the answer.
    """
    return missed(generator, weights, vectors) > FAR_OFF


def missed(generator: WeightGenerator, weights: Tensor, vectors: Tensor) -> Tensor:
    """The mean squared error of the weights sampled for a query, standardised: float32 (edits,), on the CPU."""
    parts = [
        (generator.standardise(generator.sample(query)) - generator.standardise(own)).square().mean(1)  # (part,)
        for own, query in zip(weights.split(MISSED_AT_ONCE), vectors.split(MISSED_AT_ONCE), strict=True)
    ]
    return torch.cat(parts).cpu() if parts else torch.zeros(0)


def neuron_frequencies(weights: Tensor) -> Tensor:
    """For each edit, how many of the edits have its neuron (equal in half precision): float32 (edits,), on the CPU."""
    _, index, counts = weights.half().cpu().unique(dim=0, return_inverse=True, return_counts=True)
    frequencies: Tensor = counts[index].float()
    return frequencies
