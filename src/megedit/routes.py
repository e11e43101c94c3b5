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
from megedit.adapter.ledger import Status
from megedit.edits import Edit
from megedit.router.router import Routing, encode_queries
from megedit.settings import Rule

REMEMBERED = 4096  # queries


@dataclass(frozen=True)
class Route:
    """The router's view of one query.

    familiar: an edit is used. score: the decision value, familiar at or above `threshold` unless the nearest edit was
    removed. rule: the features that make up the score. entropy: nats, of the familiarity network's output. nearest: the
    most similar edit, similarity: the cosine to it, and status: in force or removed. named: how far the query names the
    subject of that edit, 1 on its own, less as a part of a longer name, 0 not at all. neuron: generated from the query,
    or the one collected for the edit, None where the base model answers.
    """

    query: str
    familiar: bool
    score: float
    threshold: float
    rule: Rule
    entropy: float
    nearest: Edit
    similarity: float
    status: Status
    named: float
    neuron: Literal["generated", "collected"] | None


@dataclass(frozen=True)
class Found:
    """The route and the neuron of one query. weights: float32 (L,), of its neuron; None where it is not familiar."""

    route: Route
    weights: Tensor | None


class NeuronFinder:
    """An adapter's encoder, router and generator as one step from queries to neurons, used by one thread at a time.

    What was found is remembered for the `REMEMBERED` queries asked last.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._remembered: OrderedDict[str, Found] = OrderedDict()  # by query
        self._lock = threading.RLock()

    @torch.no_grad()
    def encode(self, queries: Sequence[str]) -> Tensor:
        """The vectors by which bare queries are routed, and from which neurons are generated: float32 (queries, C)."""
        router = self._adapter.router
        with self._lock:
            return encode_queries(self._adapter.encoder, queries, router.vectors, router.subjects)

    @torch.no_grad()
    def route(self, queries: Sequence[str]) -> list[Route]:
        """The route of each query."""
        return self._routed(queries)[2] if queries else []

    def find(self, queries: Sequence[str]) -> list[Found]:
        """The route and the neuron of each query, from memory where it has been asked before."""
        with self._lock:
            new = [query for query in dict.fromkeys(queries) if query not in self._remembered]
            found = {query: self._remembered[query] for query in queries if query in self._remembered}
            found |= zip(new, self._generated(new), strict=True)
            for query in queries:
                self._remembered[query] = found[query]
                self._remembered.move_to_end(query)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return [found[query] for query in queries]

    @torch.no_grad()
    def nearest(self, query: str, count: int) -> list[tuple[int, float]]:
        """The edits nearest to a query, as indices into `Adapter.routed`, each with the cosine to it.

        First the one by which the query is routed: an edit in the very same words goes before one whose vector is
        nearer.
        """
        with self._lock:
            vectors, routing, _ = self._routed([query])
            similarity, rows = self._adapter.router.vectors.nearest(vectors, count)  # (1, count)
        found = dict(zip(rows[0].tolist(), similarity[0].tolist(), strict=True))
        first = int(routing.nearest[0])
        order = [first, *(row for row in found if row != first)][:count]
        found[first] = float(routing.similarity[0])
        return [(row, found[row]) for row in order]

    def forget(self) -> None:
        """Forget what was found."""
        with self._lock:
            self._remembered.clear()

    @torch.no_grad()
    def _generated(self, queries: Sequence[str]) -> list[Found]:
        if not queries:
            return []
        vectors, routing, routes = self._routed(queries)
        weights: dict[int, Tensor] = {}
        rows = [row for row, route in enumerate(routes) if route.neuron == "generated"]
        if rows:
            generated = self._adapter.generate(vectors[rows], routing.nearest[rows])  # (rows, L)
            # copies, so that one remembered row does not keep its whole batch in memory
            weights = {row: own.clone() for row, own in zip(rows, generated, strict=True)}
        for row, route in enumerate(routes):
            if route.neuron == "collected":
                nearest = self._adapter.routed[int(routing.nearest[row])]
                weights[row] = self._adapter.collected[nearest.number].to(vectors.device)
        return [Found(route, weights.get(row)) for row, route in enumerate(routes)]

    def _routed(self, queries: Sequence[str]) -> tuple[Tensor, Routing, list[Route]]:
        """The vectors of queries, float32 (queries, C), what the router makes of them, and the same as routes."""
        with self._lock:
            vectors = self.encode(queries)
            routing = self._adapter.router.route(vectors, queries)
        return vectors, routing, [self._route(query, routing, row) for row, query in enumerate(queries)]

    def _route(self, query: str, routing: Routing, row: int) -> Route:
        nearest, familiar = self._adapter.routed[int(routing.nearest[row])], bool(routing.familiar[row])
        return Route(
            query=query,
            familiar=familiar,
            score=float(routing.score[row]),
            threshold=float(routing.threshold[row]),
            rule=routing.rule[row],
            entropy=float(routing.entropy[row]),
            nearest=nearest.edit,
            similarity=float(routing.similarity[row]),
            status=nearest.status,
            named=float(routing.named[row]),
            neuron=None if not familiar else "generated" if nearest.generated else "collected",
        )
