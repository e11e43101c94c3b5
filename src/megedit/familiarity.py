"""The router: does a query ask for an edited fact?

Source: MeG (arXiv 2512.14395), section 3.2. The familiarity network is a K-way classifier on the encoder's vectors,
trained until it has memorised a random class for every edit; near an edit its output has low entropy, elsewhere high.
The decision here may also look at the similarity to the nearest edit and at how far the query names that edit's
subject. Its threshold is calibrated on held-out pseudo-knowledge: rephrases of enrolled pseudo-facts against
neighbouring and unrelated queries. What stands before the last sentence of a query may belong to it or not; both
readings are looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

from megedit.edits import normalise_query
from megedit.encoder import TextEncoder
from megedit.errors import MegError
from megedit.names import share_of_name
from megedit.precision import mixed_precision
from megedit.vectors import EditVectors

SENTENCE_END = re.compile(r"[.!?…][\"'”)\]]*\s+")
FEWEST = 2  # familiar and unfamiliar queries from which a rule can be calibrated
Rule = Literal["entropy", "similarity", "combined", "named", "subject"]
RULES: dict[Rule, tuple[bool, bool, bool]] = {  # which features a rule looks at: log entropy, similarity, subject
    "entropy": (True, False, False),
    "similarity": (False, True, False),
    "combined": (True, True, False),
    "named": (False, True, True),
    "subject": (True, True, True),
}
WITHOUT_SUBJECT: dict[Rule, Rule] = {"subject": "combined", "named": "similarity"}  # what decides where there is none
WITHOUT_NETWORK: dict[Rule, Rule] = {"subject": "named", "combined": "similarity", "entropy": "similarity"}


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
    rule: Rule = field(
        default="subject",
        metadata={
            "help": "entropy; similarity to the nearest edit; combined: both; named: similarity, and how far the query "
            "names the subject of that edit, where the edit has one; subject: all three"
        },
    )

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {self.rule!r}")
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


def read(encoder: TextEncoder, queries: Sequence[str], edits: EditVectors) -> Tensor:
    """The vectors of queries (float32 (queries, size), unit length), given those of the edits.

    A query of several sentences is read whole and by its last sentence alone; the reading nearer to an edit counts.
    """
    device = edits.codes.device
    vectors = encoder.encode(queries).to(device)
    ends = {row: end for row, query in enumerate(queries) if (end := last_sentence(query))}
    if ends:
        alone = encoder.encode(list(ends.values())).to(device)
        rows = torch.tensor(list(ends), device=device)
        nearer = (edits.nearest(alone)[0] > edits.nearest(vectors[rows])[0])[:, 0]
        vectors = vectors.index_copy(0, rows[nearer], alone[nearer])
    return vectors


def last_sentence(query: str) -> str | None:
    """The last of several sentences, if it has four words or more; a shorter one is seldom a question of its own."""
    start = max((found.end() for found in SENTENCE_END.finditer(query.strip())), default=0)
    last = query.strip()[start:]
    return last if start and len(last.split()) >= 4 else None


@dataclass(frozen=True)
class Routing:
    """The router's answer for each query, tensors of shape (queries,).

    familiar: bool. score: float32, the decision value, familiar at or above `threshold`, float32. entropy: float32,
    nats. nearest: int64, index of the most similar edit. similarity: float32, cosine to it. named: float32, how far the
    query names the subject of that edit: 1 on its own, less as a part of a longer name, 0 not at all. rule: what
    decided, for each query.
    """

    familiar: Tensor
    score: Tensor
    threshold: Tensor
    entropy: Tensor
    nearest: Tensor
    similarity: Tensor
    named: Tensor
    rule: Sequence[Rule]


@dataclass(frozen=True)
class Enrolled:
    """What the router knows of an edit beside its vector.

    learned: the network was trained on it; if not, the entropy says nothing of queries near it. removed: the edit was
    taken back; queries nearest to it are for the base model. prompt: a query in the same words is nearest to this edit,
    whatever the vectors say.
    """

    subject: str | None = None
    learned: bool = True
    removed: bool = False
    prompt: str = ""


@dataclass(frozen=True)
class Decision:
    """A calibrated rule: familiar when weights . (log entropy, similarity, subject named) >= threshold.

    unnamed_threshold: the one for queries that do not name the subject of the nearest edit at all. The rates and the
    area under the ROC curve are those on the held-out queries.
    """

    weights: tuple[float, float, float]
    threshold: float
    unnamed_threshold: float
    auc: float
    true_positive_rate: float
    false_positive_rate: float

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Decision:
        return cls(**{**fields, "weights": tuple(fields["weights"])})


@dataclass(frozen=True)
class Calibration:
    """Every rule that could be calibrated, which of them decides, and its held-out curve.

    curve: points of the held-out ROC as (threshold, false positive rate, true positive rate).
    """

    rule: Rule
    rules: dict[Rule, Decision]
    curve: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Calibration:
        rules = {name: Decision.from_json(decision) for name, decision in fields["rules"].items()}
        return cls(fields["rule"], rules, [tuple(point) for point in fields["curve"]])

    @property
    def decision(self) -> Decision:
        """The rule that decides on edits with a subject."""
        return self.rules[self.rule]

    def rule_for(self, edit: Enrolled) -> Rule:
        """The rule that decides on queries nearest to this edit."""
        rule: Rule = self.rule
        if not edit.learned:
            rule = WITHOUT_NETWORK.get(rule, rule)
        if edit.subject is None or rule not in self.rules:
            rule = WITHOUT_SUBJECT.get(rule, rule)
        return rule


def log_entropy(entropy: Tensor) -> Tensor:
    """Natural logarithm of the entropy, bounded below where float32 rounds to 0."""
    return entropy.clamp(min=1e-6).log()


class Router:
    """Familiarity network, the edits (their vectors, and what else is known of each) and the calibrated decision."""

    def __init__(
        self, network: FamiliarityNetwork, vectors: EditVectors, edits: Sequence[Enrolled], calibration: Calibration
    ) -> None:
        self.network, self.vectors, self.calibration = network, vectors, calibration
        self._edits = edits
        self._prompts = {normalise_query(edit.prompt): row for row, edit in enumerate(edits) if edit.prompt}

    @torch.no_grad()
    def route(self, vectors: Tensor, queries: Sequence[str]) -> Routing:
        """Decide for each query, given its vector (float32 (queries, size), unit length) and its text."""
        entropy = self.network.entropy(vectors)
        similarity, nearest = (found[:, 0] for found in self.vectors.nearest(vectors))
        for i, query in enumerate(queries):
            if (own := self._prompts.get(normalise_query(query))) is not None:
                nearest[i], similarity[i] = own, vectors[i] @ self.vectors[nearest.new_tensor([own])][0]
        edits = [self._edits[i] for i in nearest.tolist()]
        rules = [self.calibration.rule_for(edit) for edit in edits]
        decisions = [self.calibration.rules[rule] for rule in rules]
        named = _named(queries, [edit.subject for edit in edits]).to(vectors.device)
        features = torch.stack([log_entropy(entropy), similarity, named], 1)  # (queries, 3)
        weights = torch.tensor([decision.weights for decision in decisions], device=vectors.device).view(-1, 3)
        threshold = torch.tensor([decision.threshold for decision in decisions], device=vectors.device)
        unnamed = torch.tensor([decision.unnamed_threshold for decision in decisions], device=vectors.device)
        looked = torch.tensor([RULES[rule][2] for rule in rules], dtype=torch.bool, device=vectors.device)
        threshold = torch.where(looked & (named == 0), unnamed, threshold)
        removed = torch.tensor([edit.removed for edit in edits], dtype=torch.bool, device=vectors.device)
        score = (weights * features).sum(1)
        return Routing((score >= threshold) & ~removed, score, threshold, entropy, nearest, similarity, named, rules)


def _named(queries: Sequence[str], subjects: Sequence[str | None]) -> Tensor:
    """How far each query names the subject beside it, as `share_of_name` counts it: float32 (queries,)."""
    pairs = zip(queries, subjects, strict=True)
    return torch.tensor([share_of_name(query, subject) if subject else 0.0 for query, subject in pairs])


@dataclass(frozen=True)
class CalibrationSet:
    """Held-out queries, texts and vectors: pseudo-facts that play edits, their rephrases, and what must not pass.

    The last `near` of the unfamiliar are other questions about the subjects of the enrolled. Many are so like a
    rephrase that a threshold which refuses nearly all of them would refuse rephrases too: they decide on the weights of
    a rule and do not count for its threshold.
    """

    enrolled: Tensor  # float32 (facts, size)
    subjects: Sequence[str | None]  # of the enrolled
    familiar: Tensor  # float32 (queries, size)
    unfamiliar: Tensor
    queries: Sequence[str]  # the familiar, then the unfamiliar
    near: int = 0


def calibrate(
    edits: EditVectors,
    subjects: Sequence[str | None],
    held_out: CalibrationSet,
    settings: FamiliaritySettings,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Choose the weights and threshold of every rule on held-out pseudo-knowledge.

    The held-out queries are enrolled beside the edits in a network of the same kind, trained for this purpose only,
    so that the threshold fits the density of this edit set. Rules that look at the subject are calibrated where the
    nearest edit has one; when that leaves too few queries, another rule takes their place (`WITHOUT_SUBJECT`).
    """
    enrolled = torch.cat([edits.unpack(), held_out.enrolled])
    network = train_familiarity(enrolled, settings, seed, progress)
    vectors = torch.cat([held_out.familiar, held_out.unfamiliar])
    similarity, nearest = (found[:, 0] for found in EditVectors.pack(enrolled).nearest(vectors))
    all_subjects = [*subjects, *held_out.subjects]
    nearest_subjects = [all_subjects[i] for i in nearest.tolist()]
    named = _named(held_out.queries, nearest_subjects).numpy()
    entropies = log_entropy(network.entropy(vectors)).cpu().numpy()
    features = np.stack([entropies, similarity.cpu().numpy(), named], axis=1)  # (queries, 3)
    truth = np.arange(len(vectors)) < len(held_out.familiar)
    counted = np.arange(len(vectors)) < len(vectors) - held_out.near
    known = np.array([subject is not None for subject in nearest_subjects])
    rules: dict[Rule, Decision] = {}
    curves: dict[Rule, list[tuple[float, float, float]]] = {}
    for rule, used in RULES.items():
        rows = known if used[2] else np.full(len(truth), True)
        if min(truth[rows & counted].sum(), (~truth[rows & counted]).sum()) >= FEWEST:
            rules[rule], curves[rule] = _decision(
                features[rows], truth[rows], counted[rows], np.array(used), settings.false_positives
            )
    if "combined" not in rules:
        raise MegError(f"Fewer than {FEWEST} held-out queries of a kind are too few to calibrate the router.")
    chosen: Rule = settings.rule if settings.rule in rules else WITHOUT_SUBJECT[settings.rule]
    return Calibration(chosen, rules, curves[chosen])


def _decision(
    features: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    counted: np.ndarray[Any, Any],
    used: np.ndarray[Any, Any],
    false_positives: float,
) -> tuple[Decision, list[tuple[float, float, float]]]:
    """Weights by logistic regression on the features in use; the threshold from the ROC curve, which is returned."""
    weights = np.zeros(len(used))
    weights[used] = LogisticRegression(class_weight="balanced", C=100.0).fit(features[:, used], truth).coef_[0]
    scores, truth, named = (features @ weights)[counted], truth[counted], features[counted, 2]
    false_positive, true_positive, thresholds = roc_curve(truth, scores)
    # among the thresholds that let through no more than allowed (but one at least), the highest that recognises most
    allowed = max(2, int((false_positive <= false_positives).sum()))
    best = max(1, int(np.argmax(true_positive[:allowed])))
    lowest_accepted = float(thresholds[best])
    refused = scores[scores < lowest_accepted]
    threshold = (lowest_accepted + float(refused.max())) / 2 if len(refused) else lowest_accepted
    # the subject, where a rule looks at it, is what tells rephrases from questions about another one: a query that does
    # not name it must score higher than every held-out query that should be refused
    strange = scores[~truth & (named == 0)] if used[2] else scores[:0]
    unnamed = max(threshold, float(strange.max(initial=-np.inf)) + 1e-3)
    accepted = scores >= np.where(used[2] & (named == 0), unnamed, threshold)
    points = np.unique(np.linspace(1, len(thresholds) - 1, min(200, len(thresholds) - 1)).round().astype(int))
    decision = Decision(
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        threshold=threshold,
        unnamed_threshold=unnamed,
        auc=float(roc_auc_score(truth, scores)),
        true_positive_rate=float(accepted[truth].mean()),
        false_positive_rate=float(accepted[~truth].mean()),
    )
    return decision, [(float(thresholds[i]), float(false_positive[i]), float(true_positive[i])) for i in points]
