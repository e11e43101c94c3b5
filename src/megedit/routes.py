"""The route and the neuron of a query: what the router says of it, and the weights with which it is answered.

Source: MeG (arXiv 2512.14395), section 3.5: query -> vector -> router -> weights, generated or collected.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megedit.adapter.adapter import Adapter
from megedit.adapter.ledger import EditRecord
from megedit.edits import Edit
from megedit.router.router import By, Candidate, Routing

REMEMBERED = 4096  # queries


@dataclass(frozen=True)
class Near:
    """An edit near a query: the cosine of the two, and the verifier's score where it was asked."""

    edit: Edit
    similarity: float
    score: float | None


@dataclass(frozen=True)
class Route:
    """The router's view of one query.

    familiar: an edit is used. by: what decided, the words of an edit, the gate, the verifier or another rule. score:
    the value that decided, familiar at or above `threshold`, unless the gate has ended it. entropy: nats, of the
    familiarity network's output. nearest: the edits that came into question, first the one that is used where one is;
    none where the adapter has no edit in force. neuron: generated from the query, or the one collected for the edit,
    None where the base model answers.
    """

    query: str
    familiar: bool
    by: By
    score: float
    threshold: float
    entropy: float
    nearest: tuple[Near, ...]
    neuron: Literal["generated", "collected"] | None

    @property
    def edit(self) -> Edit | None:
        """The edit that is used."""
        return self.nearest[0].edit if self.familiar else None

    @property
    def why(self) -> str:
        """The decision, and what it was made by, in words."""
        against = f"{self.score:.2f} {'>=' if self.score >= self.threshold else '<'} {self.threshold:.2f}"
        if not self.nearest:
            return "no edit is in force: the base model answers"
        if self.familiar:
            reason = "the question is in its very words" if self.by == "words" else f"{self.by}: {against}"
            return f"an edit is used ({reason})"
        reasons = {
            "gate": f"no edit is near enough for the verifier to read it (gate: {against})",
            "verifier": f"it asks for none of the edits near it (verifier: {against})",
        }
        return f"no edit: {reasons.get(self.by, f'{self.by}: {against}')}; the base model answers"


@dataclass(frozen=True)
class Found:
    """The route and the neuron of one query. weights: float32 (L,), of its neuron; None where it is not familiar."""

    route: Route
    weights: Tensor | None


class NeuronFinder:
    """An adapter's router and generator as one step from queries to neurons, used by one thread at a time.

    What was found is remembered for the `REMEMBERED` queries asked last.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._remembered: OrderedDict[str, Found] = OrderedDict()  # by query
        self._lock = threading.RLock()

    def route(self, queries: Sequence[str]) -> list[Route]:
        """The route of each query."""
        return [self._route(*each) for each in zip(queries, self._routed(queries), strict=True)]

    def find(self, queries: Sequence[str]) -> list[Found]:
        """The route and the neuron of each query, from memory where it has been asked before."""
        with self._lock:
            new = [query for query in dict.fromkeys(queries) if query not in self._remembered]
            found = {query: self._remembered[query] for query in queries if query in self._remembered}
            found |= zip(new, self._found(new), strict=True)
            for query in queries:
                self._remembered[query] = found[query]
                self._remembered.move_to_end(query)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return [found[query] for query in queries]

    def nearest(self, query: str, count: int) -> tuple[Near, ...]:
        """The edits nearest to a query, each with the verifier's score where the rule has one; the best first."""
        with self._lock:
            return tuple(self._near(each) for each in self._adapter.router.nearest(query, count))

    def generated(self, query: str) -> tuple[EditRecord, Tensor] | None:
        """The best candidate of a query, and the neuron, float32 (L,), generated as for it; None without any edit."""
        routing = self._routed([query])[0]
        if not routing.candidates:
            return None
        return self._adapter.active[routing.candidates[0].edit], self._generated([routing])[0]

    def forget(self) -> None:
        """Forget what was found."""
        with self._lock:
            self._remembered.clear()

    def _found(self, queries: Sequence[str]) -> list[Found]:
        routed = self._routed(queries)
        routes = [self._route(*each) for each in zip(queries, routed, strict=True)]
        weights: dict[int, Tensor] = {}
        rows = [row for row, route in enumerate(routes) if route.neuron == "generated"]
        if rows:
            # copies, so that one remembered row does not keep its whole batch in memory
            generated = self._generated([routed[row] for row in rows])
            weights = {row: own.clone() for row, own in zip(rows, generated, strict=True)}
        for row, route in enumerate(routes):
            if route.neuron == "collected":
                record = self._adapter.active[routed[row].candidates[0].edit]
                weights[row] = self._adapter.collected[record.number].to(routed[row].vector.device)
        return [Found(route, weights.get(row)) for row, route in enumerate(routes)]

    @torch.no_grad()
    def _generated(self, routed: Sequence[Routing]) -> Tensor:
        """The neurons generated for queries, each as for its best candidate: float32 (queries, L)."""
        rows = torch.tensor([routing.candidates[0].row for routing in routed])
        return self._adapter.generate(torch.stack([routing.vector for routing in routed]), rows)

    def _routed(self, queries: Sequence[str]) -> list[Routing]:
        with self._lock:
            return self._adapter.router.route(queries) if queries else []

    def _route(self, query: str, routing: Routing) -> Route:
        neuron: Literal["generated", "collected"] | None = None
        if routing.fires:
            neuron = "generated" if self._adapter.active[routing.fires.edit].generated else "collected"
        return Route(
            query=query,
            familiar=routing.fires is not None,
            by=routing.by,
            score=routing.score,
            threshold=routing.threshold,
            entropy=routing.entropy,
            nearest=tuple(map(self._near, routing.candidates)),
            neuron=neuron,
        )

    def _near(self, candidate: Candidate) -> Near:
        return Near(self._adapter.active[candidate.edit].edit, candidate.similarity, candidate.logit)
