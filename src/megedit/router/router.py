"""The router: does a query ask for an edited fact?

Source: MeG (arXiv 2512.14395), section 3.2, where the entropy of the familiarity network decides. Here the decision may
also look at the similarity to the nearest edit and at how far the query names that edit's subject. What stands before
the last sentence of a query may belong to it or not; both readings are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megedit.edits import normalise_query
from megedit.edits.subjects import share_of_name, tell_apart
from megedit.encoder import SENTENCE_END, TextEncoder
from megedit.router.decision import Calibration, Enrolled, Features
from megedit.router.familiarity import FamiliarityNetwork
from megedit.router.index import EditVectors
from megedit.settings import Rule

NEIGHBOURS = 8  # of a query near a removed edit, among which an edit in force is looked for
QUESTION_WORDS = 4  # of which a sentence has at least as many to be a question of its own


def encode_queries(
    encoder: TextEncoder, queries: Sequence[str], edits: EditVectors, subjects: Sequence[str | None]
) -> Tensor:
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
        in_force_last = sorted(enumerate(edits), key=lambda item: not item[1].removed)
        self._prompts = {normalise_query(edit.prompt): row for row, edit in in_force_last if edit.prompt}
        self._in_force: dict[str, list[int]] = {}  # by subject, where a removed edit has the same
        gone = {edit.subject.casefold() for edit in edits if edit.removed and edit.subject}
        for row, edit in enumerate(edits):
            if gone and edit.subject and not edit.removed and (name := edit.subject.casefold()) in gone:
                self._in_force.setdefault(name, []).append(row)

    @torch.no_grad()
    def route(self, vectors: Tensor, queries: Sequence[str]) -> Routing:
        """Decide for each query, given its vector (float32 (queries, size), unit length) and its text.

        A query nearest to a removed edit is unfamiliar, unless that fact was stated anew in other words.
        """
        entropy = self.network.entropy(vectors)
        similarity, nearest = (found[:, 0] for found in self.vectors.nearest(vectors))
        for i, query in enumerate(queries):
            if (own := self._prompts.get(normalise_query(query))) is not None:
                nearest[i], similarity[i] = own, vectors[i] @ self.vectors[nearest.new_tensor([own])][0]
        edits = [self._edits[i] for i in nearest.tolist()]
        for i, edit in enumerate(edits):
            if edit.removed and (anew := self._stated_anew(edit, vectors[i], queries[i])):
                edits[i], nearest[i], similarity[i] = anew
        named = shares_of_names(queries, [edit.subject for edit in edits]).to(vectors.device)
        features = Features(log_entropy(entropy), similarity, named)  # each (queries,)
        rules = [self.calibration.rule_for(edit) for edit in edits]
        familiar = torch.zeros_like(nearest, dtype=torch.bool)
        score, threshold = torch.zeros_like(similarity), torch.zeros_like(similarity)
        for rule in dict.fromkeys(rules):
            rows = torch.tensor([other == rule for other in rules], device=vectors.device)
            decision, of_rule = self.calibration.rules[rule], Features(*(values[rows] for values in features))
            familiar[rows] = decision.accepts(of_rule)
            score[rows], threshold[rows] = decision.score(of_rule), decision.threshold_for(of_rule)
        removed = torch.tensor([edit.removed for edit in edits], dtype=torch.bool, device=vectors.device)
        return Routing(familiar & ~removed, score, threshold, entropy, nearest, similarity, named, rules)

    def _stated_anew(self, removed: Enrolled, vector: Tensor, query: str) -> tuple[Enrolled, int, float] | None:
        """The edit in force, its index and similarity, that the query asks for as for the removed one.

        The familiarity network, which may have memorised the removed edit, has no say.
        """
        of_subject = self._in_force.get(removed.subject.casefold(), ()) if removed.subject else ()
        rows = torch.tensor([*self.vectors.nearest(vector[None], NEIGHBOURS)[1][0].tolist(), *of_subject])
        similarity, order = (self.vectors[rows.to(vector.device)] @ vector).sort(descending=True)  # each (rows,)
        for value, row in zip(similarity.tolist(), rows[order.cpu()].tolist(), strict=True):
            edit = replace(self._edits[row], learned=False)
            subjects = {subject.casefold() for subject in (edit.subject, removed.subject) if subject}
            if edit.removed or len(subjects) > 1 or tell_apart(removed.prompt, edit.prompt):
                continue
            named = share_of_name(query, edit.subject) if edit.subject else 0.0
            decision = self.calibration.rules[self.calibration.rule_for(edit)]
            if decision.accepts(Features(0.0, value, named)):
                return edit, row, value
        return None


def shares_of_names(queries: Sequence[str], subjects: Sequence[str | None]) -> Tensor:
    """`share_of_name` of each query and the subject beside it: float32 (queries,)."""
    pairs = zip(queries, subjects, strict=True)
    return torch.tensor([share_of_name(query, subject) if subject else 0.0 for query, subject in pairs])
