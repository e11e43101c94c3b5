"""The denoiser: a diffusion transformer on patches of the weight vector, conditioned on the query's vector.

Sources: DiT (Peebles and Xie, arXiv 2212.09748) for adaLN-zero blocks; MeG (arXiv 2512.14395), section 3.4, for
patches of a weight vector as tokens. New here is the trunk: an MLP of the condition added to every token, which lets
the network read the query directly and not only as a modulation.

    noisy weights (B, L) -> patches (B, N, patch) -> tokens (B, N, width) -> blocks -> (B, N, patch) -> (B, L)
    condition (B, C) --- trunk MLP ---------------------^                      ^
    timestep (B,) + condition --- adaLN ---------------------------------------'
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megedit.settings import GeneratorSettings


class TimestepEmbedder(nn.Module):
    """Timesteps (B,) to vectors (B, width): sinusoids, then an MLP."""

    rates: Tensor

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        rates = torch.exp(-math.log(10000) * torch.arange(frequencies // 2) / (frequencies // 2))
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None].float() * self.rates  # (B, frequencies / 2)
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated by the condition; starts as the identity (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), _zero_linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulation(condition)[:, None].chunk(6, dim=-1)  # six times (B, 1, width)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        x = x + gate_a * self._attend(self.norm_attention(x) * (1 + scale_a) + shift_a)
        x = x + gate_m * self.mlp(self.norm_mlp(x) * (1 + scale_m) + shift_m)
        return x  # (B, N, width)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, head)
        out: Tensor = self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class DiT(nn.Module):
    """Noisy weights (B, L), timesteps (B,), condition (B, C) -> prediction (B, L)."""

    def __init__(self, length: int, condition_size: int, settings: GeneratorSettings) -> None:
        super().__init__()
        self.length, self.patch = length, settings.patch
        self.tokens = math.ceil(length / settings.patch)
        width = settings.width
        self.embed = nn.Linear(settings.patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.timestep = TimestepEmbedder(width)
        self.condition = nn.Linear(condition_size, width)
        self.trunk: nn.Module | None = None
        if settings.trunk_width:
            hidden = settings.trunk_width
            self.trunk = nn.Sequential(
                nn.Linear(condition_size, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, self.tokens * width),
            )
        self.blocks = nn.ModuleList(DiTBlock(width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), _zero_linear(width, 2 * width))
        self.head = _zero_linear(width, settings.patch)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        padded = F.pad(noisy, (0, self.tokens * self.patch - self.length))
        x = self.embed(padded.unflatten(1, (self.tokens, self.patch))) + self.position  # (B, N, width)
        if self.trunk is not None:
            x = x + self.trunk(condition).unflatten(1, (self.tokens, -1))
        modulation = self.timestep(timesteps) + self.condition(condition)  # (B, width)
        for block in self.blocks:
            x = block(x, modulation)
        shift, scale = self.modulation(modulation)[:, None].chunk(2, dim=-1)
        out: Tensor = self.head(self.norm(x) * (1 + scale) + shift)  # (B, N, patch)
        return out.flatten(1)[:, : self.length]


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
