"""The familiarity network: a classifier that has memorised the edits, and is sure of nothing else.

Source: MeG (arXiv 2512.14395), section 3.2. The network is a K-way classifier on the encoder's vectors, trained until
it has memorised a random class for every edit; near an edit its output has low entropy, elsewhere high. The router
decides by that entropy, alone or with other features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.device import mixed_precision
from megedit.settings import FamiliaritySettings as FamiliaritySettings


class ResidualBlock(nn.Module):
    """x + W2 dropout(gelu(W1 norm(x)))."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.expand = nn.Linear(size, 4 * size)
        self.contract = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.contract(self.dropout(F.gelu(self.expand(self.norm(x)))))
        return x  # (rows, size)


class FamiliarityNetwork(nn.Module):
    """Unit vectors (rows, size) -> logits (rows, classes)."""

    def __init__(self, size: int, settings: FamiliaritySettings) -> None:
        super().__init__()
        self.scale = math.sqrt(size)  # unit vectors to unit variance
        self.blocks = nn.ModuleList(ResidualBlock(size, settings.dropout) for _ in range(settings.blocks))
        self.head = nn.Linear(size, settings.classes)

    def forward(self, vectors: Tensor) -> Tensor:
        x = vectors * self.scale
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    @torch.no_grad()
    def entropy(self, vectors: Tensor) -> Tensor:
        """Entropy in nats of the class distribution: float32 (rows,), between 0 and log K."""
        log_p = self.forward(vectors).float().log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


def train_familiarity(
    vectors: Tensor,
    settings: FamiliaritySettings,
    seed: int,
    progress: Advance = no_progress,
    start: FamiliarityNetwork | None = None,
    new: int = 0,
) -> FamiliarityNetwork:
    """Train the network to memorise a random class for each vector (float32 (edits, size), unit length).

    start: a network that knows all but the last `new` of the vectors. Training goes on from there; each class is what
    that network takes for the most likely, and half of every batch is new, so that the steps count the new ones only.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FamiliarityNetwork(vectors.shape[1], settings).to(vectors.device)
        if start is None:
            labels = torch.randint(settings.classes, (len(vectors),), generator=generator).to(vectors.device)
            steps = training_steps(len(vectors), settings)
        else:
            network.load_state_dict(start.state_dict())
            labels, steps = start.forward(vectors).argmax(-1), training_steps(2 * new, settings)
        order, old = torch.randperm(len(vectors), generator=generator), len(vectors) - new

        def drawn(step: int) -> Tensor:
            if start is None or not old:
                at = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
                return order[at % len(vectors)]
            half = (settings.batch_size // 2,)
            spans = ((0, old), (old, len(vectors)))
            return torch.cat([torch.randint(*span, half, generator=generator) for span in spans])

        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            batch = drawn(step)
            noise = settings.noise / network.scale * torch.randn(len(batch), vectors.shape[1], generator=generator)
            with mixed_precision(vectors.device):
                loss = F.cross_entropy(network(vectors[batch] + noise.to(vectors.device)).float(), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(1)
    return network.eval().requires_grad_(False)


def training_steps(edits: int, settings: FamiliaritySettings) -> int:
    """How many steps `train_familiarity` takes for this many edits."""
    return max(settings.steps, 20 * edits // settings.batch_size)
