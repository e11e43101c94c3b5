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
from megedit.runtime.checkpoint import NOWHERE, Checkpoint, Run, cosine, set_rate
from megedit.runtime.device import mixed_precision
from megedit.settings import FamiliaritySettings as FamiliaritySettings
from megedit.settings import grown

DROPOUT = 0.1  # in the blocks
WEIGHT_DECAY = 0.01  # of AdamW
CHECKPOINT_EVERY = 1000  # steps


class ResidualBlock(nn.Module):
    """x + W2 dropout(gelu(W1 norm(x)))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.expand = nn.Linear(size, 4 * size)
        self.contract = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.contract(self.dropout(F.gelu(self.expand(self.norm(x)))))
        return x  # (rows, size)


class FamiliarityNetwork(nn.Module):
    """Unit vectors (rows, size) -> logits (rows, classes)."""

    def __init__(self, size: int, settings: FamiliaritySettings) -> None:
        super().__init__()
        self.scale = math.sqrt(size)  # unit vectors to unit variance
        self.blocks = nn.ModuleList(ResidualBlock(size) for _ in range(settings.blocks))
        self.head = nn.Linear(size, settings.classes)

    def forward(self, vectors: Tensor) -> Tensor:
        x = vectors * self.scale  # (rows, size)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    @torch.no_grad()
    def entropy(self, vectors: Tensor) -> Tensor:
        """Entropy in nats of the class distribution: float32 (rows,), between 0 and log K."""
        log_p = self.forward(vectors).float().log_softmax(-1)  # (rows, classes)
        return -(log_p.exp() * log_p).sum(-1)


def train_familiarity(
    vectors: Tensor,
    settings: FamiliaritySettings,
    seed: int,
    progress: Advance = no_progress,
    start: FamiliarityNetwork | None = None,
    new: int = 0,
    *,
    checkpoint: Checkpoint = NOWHERE,
    dtype: torch.dtype | None = None,
) -> FamiliarityNetwork:
    """Train the network to memorise a random class for each vector (float32 (edits, size), unit length).

    start: a network that knows all but the last `new` of the vectors. Training goes on from there; each class is what
    that network takes for the most likely, and half of every batch is new, so that the steps count the new ones only.
    dtype: of the matrix products in training, by default what is fast on the device.
    """
    device = vectors.device
    rng = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FamiliarityNetwork(vectors.shape[1], settings).to(device)
        if start is None:
            labels = torch.randint(settings.classes, (len(vectors),), generator=rng, device=device)  # (edits,)
            seen, old = len(vectors), 0
        else:
            network.load_state_dict(start.state_dict())
            labels = start.forward(vectors).argmax(-1)  # (edits,)
            seen, old = 2 * new, len(vectors) - new
        order = torch.randperm(len(vectors), generator=rng, device=device)
        steps, size = training_steps(seen, settings), grown(settings.batch_size, seen)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
        run, first = Run({"network": network}, optimizer, rng), 0
        if state := checkpoint.load():
            run.restore(state)
            first = int(state["step"])
            progress(first)
        for step in range(first, steps):
            set_rate(optimizer, settings.lr * cosine(step, steps))
            rows = _drawn(step, order, old, size, rng)  # (batch,)
            known = vectors[rows]  # (batch, size)
            noise = settings.noise / network.scale * torch.randn(known.shape, generator=rng, device=device)
            with mixed_precision(device, dtype):
                logits = network(known + noise)  # (batch, classes)
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress(1)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                checkpoint.save(run.state(step=torch.tensor(step + 1)))
    return network.eval().requires_grad_(False)


def _drawn(step: int, order: Tensor, old: int, size: int, rng: torch.Generator) -> Tensor:
    """Rows of a step's batch, int64 (size,): the next ones of `order`; with `old` ones, half of these, half new."""
    if not old:
        return order[torch.arange(step * size, (step + 1) * size, device=order.device) % len(order)]
    halves = ((0, old), (old, len(order)))
    return torch.cat([torch.randint(*half, (size // 2,), generator=rng, device=order.device) for half in halves])


def training_steps(edits: int, settings: FamiliaritySettings) -> int:
    """Number of steps that `train_familiarity` takes for this many edits: twenty passes, where these are more."""
    return max(settings.steps, 20 * edits // grown(settings.batch_size, edits))
