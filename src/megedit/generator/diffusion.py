"""Diffusion of weight vectors: standardisation, training objective and sampling.

Source: MeG (arXiv 2512.14395), section 3.4. Noise schedules and the DDIM sampler are those of diffusers. The noise a
sample starts from is the same for every query, so a query always gets the same weights, in any batch.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megedit.generator.denoiser import DiT
from megedit.runtime.device import mixed_precision
from megedit.runtime.processes import ALONE, Processes
from megedit.settings import TRAIN_TIMESTEPS, GeneratorSettings

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

SAMPLED_AT_ONCE = 1024  # queries; bounds the memory of sampling


class WeightGenerator(nn.Module):
    """p(w | z): query vectors (queries, C) in, weight vectors (queries, L) out."""

    mean: Tensor
    scale: Tensor
    condition_mean: Tensor
    condition_scale: Tensor
    initial_noise: Tensor

    def __init__(
        self, length: int, condition_size: int, settings: GeneratorSettings, compute_dtype: torch.dtype | None = None
    ) -> None:
        """compute_dtype: in which matrices are multiplied; `default_dtype` of the device where it is None."""
        super().__init__()
        self.settings, self.compute_dtype = settings, compute_dtype
        self.denoiser: nn.Module = DiT(length, condition_size, settings)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("scale", torch.ones(length))
        self.register_buffer("condition_mean", torch.zeros(condition_size))
        self.register_buffer("condition_scale", torch.ones(condition_size))
        self.register_buffer("initial_noise", torch.zeros(length))

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """The noise schedule, and the sampler over it."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # slow to import, and one step does without it

        scheduler: DDIMScheduler = DDIMScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=self.settings.prediction,
            clip_sample=False,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=False,
        )
        return scheduler

    def fit_scales(self, weights: Tensor, conditions: Tensor, hidden_size: int, seed: int) -> None:
        """Measure the scales of weights (edits, L) and conditions (edits, C), and draw the initial noise.

        Weights: mean removed, then the k-block, b and the v-block each divided by its own standard deviation.
        """
        self.mean.copy_(weights.mean(0))
        centred = weights - self.mean
        blocks = (slice(0, hidden_size), slice(hidden_size, -hidden_size), slice(-hidden_size, None))
        for block in blocks:
            if centred[:, block].numel():
                self.scale[block] = centred[:, block].square().mean().sqrt().clamp(min=1e-6)
        self.condition_mean.copy_(conditions.mean(0))
        self.condition_scale.copy_(conditions.std(0, correction=0).clamp(min=1e-3))
        self.initial_noise.copy_(torch.randn(len(self.initial_noise), generator=torch.Generator().manual_seed(seed)))

    def standardise(self, weights: Tensor) -> Tensor:
        """Weights (rows, L) without their mean, each block in units of its own standard deviation."""
        return (weights - self.mean) / self.scale

    def loss(
        self, weights: Tensor, vectors: Tensor, generator: torch.Generator, processes: Processes = ALONE
    ) -> Tensor:
        """Mean squared error of the denoiser on noised, standardised weights (B, L), given query vectors (B, C).

        generator: of random numbers, on the device of the weights. Of several processes, each takes its part of the
        rows; all draw the random numbers of the whole batch.
        """
        clean = self.standardise(weights)  # (B, L)
        condition = self._condition(vectors)  # (B, C)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)  # (B, L)
        drawn = torch.rand(len(clean), generator=generator, device=clean.device)  # (B,)
        towards_noise = 1 - drawn**self.settings.timestep_bias  # (B,)
        timesteps = (TRAIN_TIMESTEPS * towards_noise).long().clamp(max=TRAIN_TIMESTEPS - 1)  # (B,)
        clean, condition, noise, timesteps = map(processes.own, (clean, condition, noise, timesteps))
        noisy = self.scheduler.add_noise(clean, noise, timesteps)  # (own B, L)
        with mixed_precision(clean.device, self.compute_dtype):
            predicted = self.denoiser(noisy, timesteps, condition).float()  # (own B, L)
        if self.settings.prediction == "v_prediction":
            return F.mse_loss(predicted, self.scheduler.get_velocity(clean, noise, timesteps))
        return F.mse_loss(predicted, clean)

    @torch.no_grad()
    def sample(self, vectors: Tensor) -> Tensor:
        """Weight vectors for query vectors: float32 (queries, C) -> float32 (queries, L), deterministic."""
        if not len(vectors):  # attention over no rows gives nothing on a GPU
            return vectors.new_zeros(0, len(self.mean))
        return torch.cat([self._sample(part) for part in vectors.split(SAMPLED_AT_ONCE)])

    def _sample(self, vectors: Tensor) -> Tensor:
        condition = self._condition(vectors)  # (queries, C)
        weights = self.initial_noise.expand(len(vectors), -1)  # (queries, L)
        if self.settings.sample_steps == 1 and self.settings.prediction == "sample":
            # DDIM's one step from pure noise to no noise gives the predicted weights themselves
            weights = self._predict(weights, torch.tensor(TRAIN_TIMESTEPS - 1), condition)
            return weights * self.scale + self.mean
        self.scheduler.set_timesteps(self.settings.sample_steps)
        for timestep in self.scheduler.timesteps:
            predicted = self._predict(weights, timestep, condition)  # (queries, L)
            weights = self.scheduler.step(predicted, timestep, weights, eta=0.0, return_dict=False)[0]
        return weights * self.scale + self.mean

    def _predict(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """The denoiser's prediction for weights (queries, L) at one timestep (): float32 (queries, L)."""
        timesteps = timestep.expand(len(noisy)).to(noisy.device)  # (queries,)
        with mixed_precision(noisy.device, self.compute_dtype):
            predicted: Tensor = self.denoiser(noisy, timesteps, condition).float()
        return predicted

    def _condition(self, vectors: Tensor) -> Tensor:
        return (vectors - self.condition_mean) / self.condition_scale


def anchored(vectors: Tensor, nearest: Tensor, share: float) -> Tensor:
    """Query vectors moved towards those of their nearest edits: all float32 (queries, C), unit length.

    A rephrase lies beside its edit, in a direction that differs from one to the next; the router has found the edit.
    """
    return F.normalize((1 - share) * vectors + share * nearest, dim=1)
