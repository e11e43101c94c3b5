"""The router: does a query ask for an edited fact?

Source: MeG (arXiv 2512.14395), section 3.2, where the entropy of the familiarity network decides. Here the decision may
also look at the similarity to the nearest edit and at how far the query names that edit's subject. What stands before
the last sentence of a query may belong to it or not; both readings are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from megedit.edits.edit_set import normalise_query
from megedit.edits.subjects import share_of_name
from megedit.encoder import TextEncoder
from megedit.router.familiarity import RULES, FamiliarityNetwork, Rule
from megedit.router.index import EditVectors

SENTENCE_END = re.compile(r"[.!?…][\"'”)\]]*\s+")
QUESTION_WORDS = 4  # of which a sentence has at least as many to be a question of its own
WITHOUT_SUBJECT: dict[Rule, Rule] = {"subject": "combined", "named": "similarity"}  # what decides where there is none
WITHOUT_NETWORK: dict[Rule, Rule] = {"subject": "named", "combined": "similarity", "entropy": "similarity"}


def read(encoder: TextEncoder, queries: Sequence[str], edits: EditVectors, subjects: Sequence[str | None]) -> Tensor:
    """The vectors of queries (float32 (queries, size), unit length), given those of the edits, and their subjects.

    A query of several sentences is read whole and by its last sentence alone; the reading nearer to an edit counts. A
    last sentence of few words is seldom a question of its own: it only counts when it names the subject of that edit.
    """
    device = edits.codes.device
    ends = {row: end for row, query in enumerate(queries) if (end := last_sentence(query))}
    encoded = encoder.encode([*queries, *ends.values()]).to(device)
    vectors, alone = encoded[: len(queries)], encoded[len(queries) :]
    if ends:
        rows = torch.tensor(list(ends), device=device)
        similarity, nearest = (found[:, 0] for found in edits.nearest(alone))
        named = shares_of_names(list(ends.values()), [subjects[i] for i in nearest.tolist()])
        whole = torch.tensor([len(end.split()) >= QUESTION_WORDS for end in ends.values()]) | (named > 0)
        counts = (similarity > edits.nearest(vectors[rows])[0][:, 0]) & whole.to(device)
        vectors = vectors.index_copy(0, rows[counts], alone[counts])
    return vectors


def last_sentence(query: str) -> str | None:
    """The last of several sentences."""
    start = max((found.end() for found in SENTENCE_END.finditer(query.strip())), default=0)
    return query.strip()[start:] if start else None


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
        self.subjects = [edit.subject for edit in edits]
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
        named = shares_of_names(queries, [edit.subject for edit in edits]).to(vectors.device)
        features = torch.stack([log_entropy(entropy), similarity, named], 1)  # (queries, 3)
        weights = torch.tensor([decision.weights for decision in decisions], device=vectors.device).view(-1, 3)
        threshold = torch.tensor([decision.threshold for decision in decisions], device=vectors.device)
        unnamed = torch.tensor([decision.unnamed_threshold for decision in decisions], device=vectors.device)
        looked = torch.tensor([RULES[rule][2] for rule in rules], dtype=torch.bool, device=vectors.device)
        threshold = torch.where(looked & (named == 0), unnamed, threshold)
        removed = torch.tensor([edit.removed for edit in edits], dtype=torch.bool, device=vectors.device)
        score = (weights * features).sum(1)
        return Routing((score >= threshold) & ~removed, score, threshold, entropy, nearest, similarity, named, rules)


def shares_of_names(queries: Sequence[str], subjects: Sequence[str | None]) -> Tensor:
    """How far each query names the subject beside it, as `share_of_name` counts it: float32 (queries,)."""
    pairs = zip(queries, subjects, strict=True)
    return torch.tensor([share_of_name(query, subject) if subject else 0.0 for query, subject in pairs])
