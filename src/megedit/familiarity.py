"""The router: does a query ask for an edited fact?

Source: MeG (arXiv 2512.14395), section 3.2. The familiarity network is a K-way classifier on the encoder's vectors,
trained until it has memorised a random class for every edit; near an edit its output has low entropy, elsewhere high.
The decision here may also look at the similarity to the nearest edit, and its threshold is calibrated on held-out
pseudo-knowledge: rephrases of enrolled pseudo-facts against neighbouring and unrelated queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

Rule = Literal["entropy", "combined"]


@dataclass(frozen=True)
class FamiliaritySettings:
    """How the familiarity network is built, trained and calibrated."""

    classes: int = field(default=10, metadata={"help": "random classes K"})
    blocks: int = field(default=5, metadata={"help": "residual feed-forward blocks"})
    dropout: float = field(default=0.1, metadata={"help": "dropout in the blocks"})
    noise: float = field(default=0.3, metadata={"help": "Gaussian noise on unit-variance vectors in training"})
    steps: int = field(default=200, metadata={"help": "training steps at least; twenty passes over the edits at least"})
    batch_size: int = field(default=128, metadata={"help": "edits a step"})
    lr: float = field(default=5e-4, metadata={"help": "AdamW learning rate, cosine decay"})
    false_positives: float = field(
        default=0.01, metadata={"help": "share of held-out unfamiliar queries that may be let through"}
    )
    rule: Rule = field(default="combined", metadata={"help": "entropy alone, or entropy and nearest-edit similarity"})

    def __post_init__(self) -> None:
        if self.rule not in ("entropy", "combined"):
            raise ValueError(f"rule must be 'entropy' or 'combined', not {self.rule!r}")
        if self.classes < 2 or self.blocks < 1 or not 0 <= self.dropout < 1:
            raise ValueError("classes must be at least 2, blocks at least 1, dropout in [0, 1)")
        if not 0 <= self.false_positives < 1:
            raise ValueError(f"false_positives must be in [0, 1), not {self.false_positives}")


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
    progress: Callable[[int], None] = lambda done: None,
) -> FamiliarityNetwork:
    """Train the network to memorise a random class for each vector (float32 (edits, size), unit length)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FamiliarityNetwork(vectors.shape[1], settings).to(vectors.device).train()
        labels = torch.randint(settings.classes, (len(vectors),), generator=generator).to(vectors.device)
        steps = training_steps(len(vectors), settings)
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.randperm(len(vectors), generator=generator)
        for step in range(steps):
            at = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(vectors)
            batch = order[at]
            noise = settings.noise / network.scale * torch.randn(len(batch), vectors.shape[1], generator=generator)
            with torch.autocast(vectors.device.type, torch.bfloat16):
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


@dataclass(frozen=True)
class Routing:
    """The router's answer for each query, tensors of shape (queries,).

    familiar: bool. score: float32, the decision value, familiar at or above `threshold`. entropy: float32, nats.
    nearest: int64, index of the most similar edit. similarity: float32, cosine to it.
    """

    familiar: Tensor
    score: Tensor
    entropy: Tensor
    nearest: Tensor
    similarity: Tensor
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """The decision rule and the held-out curve its threshold was read from.

    score = entropy_weight * log(entropy) + similarity_weight * similarity, familiar when score >= threshold.
    curve: points of the held-out ROC as (threshold, false positive rate, true positive rate).
    rules: what each rule that was compared reaches on the held-out queries, at the threshold for `false_positives`.
    """

    rule: Rule
    entropy_weight: float
    similarity_weight: float
    threshold: float
    true_positive_rate: float
    false_positive_rate: float
    rules: dict[str, dict[str, float]]
    curve: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Calibration:
        return cls(**{**fields, "curve": [tuple(point) for point in fields["curve"]]})

    def score(self, entropy: Tensor, similarity: Tensor) -> Tensor:
        return self.entropy_weight * log_entropy(entropy) + self.similarity_weight * similarity


def log_entropy(entropy: Tensor) -> Tensor:
    """Natural logarithm of the entropy, bounded below where float32 rounds to 0."""
    return entropy.clamp(min=1e-6).log()


class Router:
    """Familiarity network, vectors of the edits (float32 (edits, size)) and calibrated decision rule."""

    def __init__(self, network: FamiliarityNetwork, edits: Tensor, calibration: Calibration) -> None:
        self.network, self.edits, self.calibration = network, edits, calibration

    def route(self, vectors: Tensor) -> Routing:
        """Decide for each query vector (float32 (queries, size), unit length)."""
        entropy = self.network.entropy(vectors)
        similarity, nearest = (vectors @ self.edits.T).max(1)
        score = self.calibration.score(entropy, similarity)
        threshold = self.calibration.threshold
        return Routing(score >= threshold, score, entropy, nearest, similarity, threshold)


@dataclass(frozen=True)
class CalibrationSet:
    """Held-out vectors: enrolled pseudo-queries, their rephrases, and queries that must not be routed."""

    enrolled: Tensor
    familiar: Tensor
    unfamiliar: Tensor


def calibrate(
    edits: Tensor,
    held_out: CalibrationSet,
    settings: FamiliaritySettings,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Choose the decision rule's weights and threshold on held-out pseudo-knowledge.

    The held-out queries are enrolled beside the edits in a network of the same kind, trained for this purpose only,
    so that the threshold fits the density of this edit set.
    """
    enrolled = torch.cat([edits, held_out.enrolled])
    network = train_familiarity(enrolled, settings, seed, progress)
    queries = torch.cat([held_out.familiar, held_out.unfamiliar])
    truth = np.array([1] * len(held_out.familiar) + [0] * len(held_out.unfamiliar))
    features = np.stack(
        [log_entropy(network.entropy(queries)).cpu().numpy(), (queries @ enrolled.T).amax(1).cpu().numpy()],
        axis=1,
    )
    fit = LogisticRegression(class_weight="balanced", C=100.0).fit(features, truth)
    weights = {
        "entropy": (-1.0, 0.0),
        "similarity": (0.0, 1.0),
        "combined": (fit.coef_[0][0], fit.coef_[0][1]),
    }
    scores = {rule: features @ np.array(pair) for rule, pair in weights.items()}
    curves = {rule: roc_curve(truth, score) for rule, score in scores.items()}
    # among the thresholds that let through no more than allowed (but one at least), the highest that recognises most
    allowed = {rule: max(2, int((curve[0] <= settings.false_positives).sum())) for rule, curve in curves.items()}
    best = {rule: max(1, int(np.argmax(curve[1][: allowed[rule]]))) for rule, curve in curves.items()}
    rules = {
        rule: {
            "auc": float(roc_auc_score(truth, scores[rule])),
            "true_positive_rate": float(true_positive[best[rule]]),
            "false_positive_rate": float(false_positive[best[rule]]),
        }
        for rule, (false_positive, true_positive, _) in curves.items()
    }
    chosen = settings.rule
    false_positive, true_positive, thresholds = curves[chosen]
    lowest_accepted = float(thresholds[best[chosen]])
    refused = scores[chosen][scores[chosen] < lowest_accepted]
    points = np.unique(np.linspace(1, len(thresholds) - 1, min(200, len(thresholds) - 1)).round().astype(int))
    return Calibration(
        rule=chosen,
        entropy_weight=float(weights[chosen][0]),
        similarity_weight=float(weights[chosen][1]),
        threshold=(lowest_accepted + float(refused.max())) / 2 if len(refused) else lowest_accepted,
        true_positive_rate=rules[chosen]["true_positive_rate"],
        false_positive_rate=rules[chosen]["false_positive_rate"],
        rules=rules,
        curve=[(float(thresholds[i]), float(false_positive[i]), float(true_positive[i])) for i in points],
    )
