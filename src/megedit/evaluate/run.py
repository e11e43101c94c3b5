"""Running a protocol: every case asked in batches, every answer, routing decision and verdict kept.

The edited and the unedited system answer in batches of the same shape, since in bfloat16 the answers of any model
depend on its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megedit.edits.edit_set import EditSet
from megedit.errors import MegError
from megedit.evaluate.batch import JudgedBatch, needs_answers, wanted_answers
from megedit.evaluate.journal import Journal
from megedit.evaluate.protocols import Case, EvaluationSettings, Metric, Protocol, describe
from megedit.evaluate.result import Evaluation, Verdict, summarise
from megedit.evaluate.systems import Answer, System
from megedit.model import Route

Progress = Callable[[int], None]


def run(
    protocol: Protocol,
    edited: System,
    unedited: System | None,
    edits: EditSet,
    settings: EvaluationSettings,
    *,
    unfamiliar_is_unedited: bool = False,
    system: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    journal: Path | None = None,
    progress: Progress = lambda done: None,
    check: Callable[[Sequence[Case]], None] = lambda cases: None,
) -> Evaluation:
    """Ask both systems everything the protocol asks of these edits.

    unfamiliar_is_unedited: the edited system answers a query that its router does not let through exactly as the
    unedited one does, so that batches without a familiar row need not be asked twice. system: more fields of the
    result's description of the edited system. journal: file for finished batches. check: sees the cases before
    anything is asked, and may raise. progress: called with the number of cases just done.

    Raises MegError when there is nothing to evaluate.
    """
    metrics, settings = protocol.with_settings(settings)
    cases = cases_of(edits, protocol, settings)
    check(cases)
    started = time.perf_counter()
    comparison = _Comparison(protocol, metrics, settings, edited, unedited, unfamiliar_is_unedited)
    routes = _routes(edited, cases, settings.batch_size)
    batches = list(_batches(cases, routes, settings.batch_size))
    verdicts: dict[int, Verdict] = {}
    with Journal(
        journal, [protocol.name, protocol.version, asdict(settings), [asdict(case) for case in cases]]
    ) as kept:
        for number, batch in enumerate(batches):
            done = kept.get(number)
            if done is None:
                found = comparison.verdicts([cases[i] for i in batch], [routes[i] for i in batch] if routes else None)
                kept.add(number, found)
            else:
                found = [Verdict.from_json(cases[i], values) for i, values in zip(batch, done, strict=True)]
            verdicts.update(zip(batch, found, strict=True))
            progress(len(batch))
    ordered = tuple(verdicts[i] for i in range(len(cases)))
    return Evaluation(
        protocol=describe(protocol, settings),
        system={"name": edited.name, "base": None, "edits": None, "identity": edited.identity, **(system or {})},
        data={
            "source": edits.source,
            "digest": edits.digest,
            "edits": len(edits),
            "dropped": edits.dropped_summary(),
        },
        metrics=summarise(ordered, metrics, protocol.score, settings.seed),
        verdicts=ordered,
        fit=fit,
        seconds=time.perf_counter() - started,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def cases_of(edits: EditSet, protocol: Protocol, settings: EvaluationSettings) -> list[Case]:
    """The cases of a protocol for these edits. Raises MegError when there are none, or the data lacks what it needs."""
    cases = list(protocol.cases(edits, protocol.with_settings(settings)[1]))
    if not cases:
        raise MegError("There are no edits to evaluate.")
    return cases


def _routes(edited: System, cases: Sequence[Case], size: int) -> list[Route] | None:
    """The router's decision on every case; None for a system without a router."""
    routes: list[Route] = []
    for first in range(0, len(cases), size):
        found = edited.routes([case.query for case in cases[first : first + size]])
        if found is None:
            return None
        routes += found
    return routes


def _batches(cases: Sequence[Case], routes: Sequence[Route] | None, size: int) -> Iterator[list[int]]:
    """Indices in batches of one kind each (their answers are of like length), unfamiliar ones first, then by length."""
    for kind in dict.fromkeys(case.kind for case in cases):
        chosen = [i for i, case in enumerate(cases) if case.kind == kind]
        chosen.sort(key=lambda i: (routes is not None and routes[i].familiar, len(cases[i].query)))
        yield from (chosen[i : i + size] for i in range(0, len(chosen), size))


@dataclass(frozen=True)
class _Comparison:
    """Both systems under one protocol."""

    protocol: Protocol
    metrics: tuple[Metric, ...]
    settings: EvaluationSettings
    edited: System
    unedited: System | None
    unfamiliar_is_unedited: bool

    def verdicts(self, cases: Sequence[Case], routes: Sequence[Route] | None) -> list[Verdict]:
        """Verdicts on cases of one kind."""
        measures = sorted({metric.measure for metric in self.metrics if metric.kind == cases[0].kind})
        before = None
        if self.unedited is not None:
            answers = self._answers(self.unedited, cases, needs_answers(measures, cases[0]))
            before = self._judged(self.unedited, cases, answers, answers)
        if before and self.unfamiliar_is_unedited and routes and not any(route.familiar for route in routes):
            after = before
        else:
            answers = self._answers(self.edited, cases, needs_answers(measures, cases[0]))
            after = self._judged(self.edited, cases, answers, before.answers if before else None)
        edited = after.judgements(measures)
        unedited = edited if before is after else before.judgements(measures) if before else [None] * len(cases)
        shown = [route_to_json(route) for route in routes] if routes else [None] * len(cases)
        return [Verdict(*parts) for parts in zip(cases, edited, unedited, shown, strict=True)]

    def _answers(self, system: System, cases: Sequence[Case], needed: bool) -> list[Answer] | None:
        if not needed:
            return None
        limit = self.settings.max_new_tokens
        assert limit is not None
        return system.answers([case.query for case in cases], limit, self.protocol.top_k, self.settings.seed)

    def _judged(
        self,
        system: System,
        cases: Sequence[Case],
        answers: Sequence[Answer] | None,
        unedited: Sequence[Answer] | None,
    ) -> JudgedBatch:
        return JudgedBatch(system, cases, answers, wanted_answers(cases, unedited), greedy=self.protocol.top_k == 1)


def route_to_json(route: Route) -> dict[str, Any]:
    """The part of a routing decision that a verdict keeps."""
    names = ("familiar", "score", "entropy", "threshold", "named", "similarity")
    return {**{name: getattr(route, name) for name in names}, "nearest": route.nearest.id}
