"""The router: which edit does a query ask for, if any?

The encoder finds the edits that come into question, the candidates. A gate, by similarity and the entropy of the
familiarity network (MeG, arXiv 2512.14395, section 3.2), ends nearly every query that has nothing to do with an edit.
What passes is read beside each candidate by the verifier, and the candidate that it is surest of fires, if it is sure
enough. The words of an edit itself fire it at once. With the other rules there is no verifier: the gate decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from megedit.edits import normalise_query, user_turns
from megedit.encoder import TextEncoder
from megedit.encoder import readings as readings_of
from megedit.router.decision import Calibration, Features
from megedit.router.familiarity import FamiliarityNetwork
from megedit.router.index import EditVectors
from megedit.router.verifier import Verifier, edit_text

CANDIDATES = 4  # edits that the verifier reads a query beside, at most
LEAST_ENTROPY = 1e-6  # nats
SIMILARITY_RANGE = 0.3  # below the nearest edit's similarity, in which candidates are

By = Literal["words", "gate", "verifier", "entropy", "similarity", "combined"]


@dataclass(frozen=True)
class Enrolled:
    """An edit as the router knows it: all texts that ask for it, its prompt first, and its target.

    learned: the familiarity network was trained on it.
    """

    texts: tuple[str, ...]
    target: str
    learned: bool = True

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The texts in the form in which a query with the very words of one is the same."""
        return tuple(map(normalise_query, self.texts))


@dataclass(frozen=True)
class Candidate:
    """An edit that comes into question. edit: its index. row: of the vector of its nearest text, with the cosine to it.

    reading: of the readings of the query, the index of the nearest. logit: the verifier's, None where it was not asked.
    """

    edit: int
    row: int
    similarity: float
    reading: int = 0
    logit: float | None = None


@dataclass(frozen=True)
class Routing:
    """The router's answer for one query.

    fires: the edit that the query asks for, None where it asks for none. by: what decided, the words of the query, the
    gate, the verifier or another rule. score, threshold: of what decided, which says yes at or above the threshold.
    entropy: nats, the smallest of the readings of the query. candidates: by logit where there is one, else by
    similarity, the highest first. readings: float32 (readings, size), the vectors of the query's readings.
    """

    fires: Candidate | None
    by: By
    score: float
    threshold: float
    entropy: float
    candidates: tuple[Candidate, ...]
    readings: Tensor

    @property
    def vector(self) -> Tensor:
        """The vector of the reading that is nearest to the first candidate: float32 (size,)."""
        return self.readings[self.candidates[0].reading if self.candidates else 0]


def log_entropy(entropy: Tensor) -> Tensor:
    """Natural logarithm of the entropy, bounded below where float32 rounds to 0."""
    return entropy.clamp(min=LEAST_ENTROPY).log()


class Router:
    """Encoder, edits and their vectors, familiarity network, calibrated decision, and a verifier if the rule has one.

    owners: int64 (vectors,), the edit of each vector.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        network: FamiliarityNetwork,
        vectors: EditVectors,
        owners: Tensor,
        edits: Sequence[Enrolled],
        calibration: Calibration,
        verifier: Verifier | None = None,
    ) -> None:
        self.encoder, self.network, self.vectors, self.owners = encoder, network, vectors, owners
        self.calibration, self.verifier = calibration, verifier
        self.edits = edits
        self._texts = [(text, edit.target) for edit in edits for text in edit.texts]  # by row
        words = [word for edit in edits for word in edit.words]
        self._words = dict(zip(reversed(words), reversed(range(len(words))), strict=True))  # the first row of each
        self._most_texts = max((len(edit.texts) for edit in edits), default=1)

    @torch.no_grad()
    def route(self, queries: Sequence[str]) -> list[Routing]:
        """Decide for each query."""
        found = self._judged(queries, CANDIDATES, SIMILARITY_RANGE)
        asked = [i for i, routing in enumerate(found) if routing.by == "verifier"]
        read = self._read([queries[i] for i in asked], [found[i].candidates for i in asked])
        for i, candidates in zip(asked, read, strict=True):
            score = candidates[0].logit or 0.0
            fires = candidates[0] if score >= self.calibration.threshold else None
            found[i] = replace(found[i], fires=fires, score=score, candidates=candidates)
        return found

    @torch.no_grad()
    def nearest(self, query: str, count: int) -> tuple[Candidate, ...]:
        """The edits nearest to a query, each read by the verifier where there is one, gate or no gate; best first."""
        candidates = self._judged([query], count, math.inf)[0].candidates
        return self._read([query], [candidates])[0] if self.verifier else candidates

    @torch.no_grad()
    def asks(self, queries: Sequence[str], edits: Sequence[tuple[str, str]]) -> list[bool]:
        """True where a query asks for the edit beside it, (prompt, target), as the rule has it; entropy has no say."""
        if self.verifier is not None:
            read = self.verifier.read(queries, [[edit_text(*edit)] for edit in edits])
            return [logit >= self.calibration.threshold for (logit,) in read]
        vectors = self.encoder.encode(queries), self.encoder.encode([prompt for prompt, _ in edits])
        similarity = (vectors[0] * vectors[1]).sum(1).tolist()
        decision = self.calibration.decision_for(learned=False)
        return [bool(decision.accepts(Features(0.0, value))) for value in similarity]

    def in_words(self, text: str) -> int | None:
        """The edit, as its index, that a text asks for in its very words."""
        row = self._row_of(text)
        return None if row is None else int(self.owners[row])

    def _row_of(self, text: str) -> int | None:
        return self._words.get(normalise_query(text))

    def _judged(self, queries: Sequence[str], count: int, within: float) -> list[Routing]:
        """Candidates and the gate's judgement of each query; where it passes, the verifier has still to read it.

        within: how far below the nearest edit's similarity candidates may be.
        """
        texts = [readings_of(query) for query in queries]
        vectors = self.encoder.encode([text for of in texts for text in of]).to(self.vectors.codes.device)
        entropy = self.network.entropy(vectors).tolist()  # by reading
        similarity, rows = self.vectors.nearest(vectors, count * self._most_texts)  # each (readings, n)
        near = zip(similarity.tolist(), rows.tolist(), self.owners[rows].tolist(), strict=True)
        found, first = list[Routing](), 0
        for query, of in zip(queries, texts, strict=True):
            best: dict[int, Candidate] = {}  # by edit
            for reading in range(len(of)):
                for value, row, edit in zip(*next(near), strict=True):
                    if edit not in best or best[edit].similarity < value:
                        best[edit] = Candidate(edit, row, value, reading)
            part = slice(first, first + len(of))
            own = self._own(query, vectors[first])
            if own is not None:
                best[own.edit] = own
            ordered = sorted(best.values(), key=lambda c: (c != own, -c.similarity))
            kept = [c for c in ordered[:count] if c.similarity >= ordered[0].similarity - within]
            found.append(self._gated(own, min(entropy[part]), tuple(kept), vectors[part]))
            first += len(of)
        return found

    def _own(self, query: str, vector: Tensor) -> Candidate | None:
        """The edit with a text in the very words of the query, or of the user's last turn."""
        row = self._row_of((user_turns(query) or [query])[-1])
        if row is None:
            return None
        similarity = float(self.vectors[torch.tensor([row], device=vector.device)][0] @ vector)
        return Candidate(int(self.owners[row]), row, similarity)

    def _gated(
        self, own: Candidate | None, entropy: float, candidates: tuple[Candidate, ...], readings: Tensor
    ) -> Routing:
        """The decision, as far as it can be made without the verifier. own: the edit in the query's very words."""
        routing = partial(Routing, entropy=entropy, candidates=candidates, readings=readings)
        if own is not None:
            return routing(own, "words", own.similarity, own.similarity)
        if not candidates:
            return routing(None, "gate", 0.0, 0.0)
        best, rule = candidates[0], self.calibration.rule
        decision = self.calibration.decision_for(self.edits[best.edit].learned)
        features = Features(math.log(max(entropy, LEAST_ENTROPY)), best.similarity)
        score, passes = float(decision.score(features)), bool(decision.accepts(features))
        if rule != "verified":
            return routing(best if passes else None, rule, score, decision.threshold)
        if not passes:
            return routing(None, "gate", score, decision.threshold)
        return routing(None, "verifier", score, self.calibration.threshold)

    def _read(self, queries: Sequence[str], candidates: Sequence[tuple[Candidate, ...]]) -> list[tuple[Candidate, ...]]:
        """The candidates of each query with the verifier's logits, the highest first."""
        if not any(candidates):
            return list(candidates)
        assert self.verifier is not None, "the rule is that of a verifier"
        texts = [[edit_text(*self._texts[c.row]) for c in of] for of in candidates]
        read = []
        for of, logits in zip(candidates, self.verifier.read(queries, texts), strict=True):
            found = [replace(c, logit=logit) for c, logit in zip(of, logits, strict=True)]
            read.append(tuple(sorted(found, key=lambda c: -(c.logit or 0.0))))
        return read
