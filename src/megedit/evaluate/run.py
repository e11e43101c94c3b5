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

from megedit.edits import EditSet
from megedit.errors import MegError
from megedit.evaluate.batch import JudgedBatch, needs_answers, wanted_answers
from megedit.evaluate.journal import Journal
from megedit.evaluate.protocols import Case, EvaluationSettings, Measure, Metric, Protocol, describe
from megedit.evaluate.result import Evaluation, Judgement, Verdict, summarise
from megedit.evaluate.systems import Answer, System
from megedit.routes import Route
from megedit.runtime.callbacks import Advance, no_progress

ENDING = 4  # tokens behind a target that an answer may take: a full stop, the end of text, another spelling


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
    journals: Path | None = None,
    progress: Advance = no_progress,
    check: Callable[[Sequence[Case]], Sequence[Case]] = lambda cases: cases,
) -> Evaluation:
    """Ask both systems everything the protocol asks of these edits.

    unfamiliar_is_unedited: the edited system answers a query that its router does not let through exactly as the
    unedited one does, so that batches without a familiar row need not be asked twice. system: more fields of the
    result's description of the edited system. journals: folder for finished batches, by which an interrupted evaluation
    goes on. check: sees the cases before anything is asked, gives those that may be asked, and may raise. progress:
    called with the number of cases just done.

    Raises MegError when there is nothing to evaluate.
    """
    metrics, settings = protocol.with_settings(settings)
    possible = cases_of(edits, protocol, settings)
    cases = check(possible)
    started, identity = time.perf_counter(), edited.identity
    comparison = _Comparison(protocol, metrics, settings, edited, unedited, unfamiliar_is_unedited)
    routed = _routed(edited, cases, protocol, settings)
    batches = list(_batches(routed, settings.batch_size))
    standard = unedited.identity if journals and unedited else None
    key = [identity, standard, protocol.name, protocol.version, asdict(settings), [asdict(case) for case in cases]]
    verdicts: dict[int, Verdict] = {}
    with Journal(journals, key, [[cases[i] for i in batch] for batch in batches]) as journal:
        for number, batch in enumerate(batches):
            found = journal.get(number)
            if found is None:
                begun = time.perf_counter()
                found = comparison.verdicts([routed[i] for i in batch])
                journal.add(number, time.perf_counter() - begun, found)
            verdicts.update(zip(batch, found, strict=True))
            progress(len(batch))
    ordered = tuple(verdicts[i] for i in range(len(cases)))
    return Evaluation(
        protocol=describe(protocol, settings),
        system={"name": edited.name, "base": None, "edits": None, "identity": identity, **(system or {})},
        data={
            "source": edits.source,
            "digest": edits.digest,
            "edits": len(edits),
            "dropped": edits.dropped_summary(),
            "left_out": len(possible) - len(cases),
        },
        metrics=summarise(ordered, metrics, protocol.score, settings.seed),
        verdicts=ordered,
        fit=fit,
        seconds=time.perf_counter() - started + journal.seconds,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def cases_of(edits: EditSet, protocol: Protocol, settings: EvaluationSettings) -> list[Case]:
    """The cases of a protocol for these edits. Raises MegError when there are none, or the data lacks what it needs."""
    cases = list(protocol.cases(edits, protocol.with_settings(settings)[1]))
    if not cases:
        raise MegError("There are no edits to evaluate.")
    return cases


@dataclass(frozen=True)
class _Routed:
    """A case with the longest answer it may get, in tokens, and the routing decision, if there is a router."""

    case: Case
    limit: int
    route: Route | None

    @property
    def familiar(self) -> bool:
        return self.route is not None and self.route.familiar


def _routed(edited: System, cases: Sequence[Case], protocol: Protocol, settings: EvaluationSettings) -> list[_Routed]:
    limits = _limits(edited, cases, protocol, settings)
    routes: list[Route | None] = []
    for first in range(0, len(cases), settings.batch_size):
        queries = [case.query for case in cases[first : first + settings.batch_size]]
        routes += edited.routes(queries) or [None] * len(queries)
    return [_Routed(*parts) for parts in zip(cases, limits, routes, strict=True)]


def _limits(edited: System, cases: Sequence[Case], protocol: Protocol, settings: EvaluationSettings) -> list[int]:
    """The longest answer to each case: that of the settings or, by default, the protocol's with room for the target."""
    if settings.max_new_tokens is not None:
        return [settings.max_new_tokens] * len(cases)
    texts = list(dict.fromkeys(answer for case in cases for answer in case.answers))
    lengths = dict(zip(texts, edited.token_counts(texts) or [0] * len(texts), strict=True))
    return [max(protocol.max_new_tokens, *(lengths[answer] + ENDING for answer in case.answers), 0) for case in cases]


def _batches(routed: Sequence[_Routed], size: int) -> Iterator[list[int]]:
    """Indices in batches of one kind each: unfamiliar queries first, then by answers' limit, then by length."""
    for kind in dict.fromkeys(each.case.kind for each in routed):
        chosen = [i for i, each in enumerate(routed) if each.case.kind == kind]
        chosen.sort(key=lambda i: (routed[i].familiar, routed[i].limit, len(routed[i].case.query)))
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

    def verdicts(self, batch: Sequence[_Routed]) -> list[Verdict]:
        """Verdicts on cases of one kind."""
        measures = sorted({metric.measure for metric in self.metrics if metric.kind == batch[0].case.kind})
        before = None
        if self.unedited is not None:
            answers = self._answers(self.unedited, batch, measures)
            before = self._judged(self.unedited, batch, answers, answers)
        if before and self.unfamiliar_is_unedited and not any(each.familiar for each in batch):
            after = before
        else:
            answers = self._answers(self.edited, batch, measures)
            after = self._judged(self.edited, batch, answers, before.answers if before else None)
        edited = after.judgements(measures)
        unedited: Sequence[Judgement | None] = [None] * len(batch)
        if before:
            unedited = edited if before is after else before.judgements(measures)
        return [
            Verdict(each.case, after_edits, before_edits, route_to_json(each.route) if each.route else None)
            for each, after_edits, before_edits in zip(batch, edited, unedited, strict=True)
        ]

    def _answers(self, system: System, batch: Sequence[_Routed], measures: Sequence[Measure]) -> list[Answer] | None:
        if not needs_answers(measures, batch[0].case):
            return None
        queries, limits = [each.case.query for each in batch], [each.limit for each in batch]
        return system.answers(queries, limits, self.protocol.top_k, self.settings.seed)

    def _judged(
        self,
        system: System,
        batch: Sequence[_Routed],
        answers: Sequence[Answer] | None,
        unedited: Sequence[Answer] | None,
    ) -> JudgedBatch:
        cases = [each.case for each in batch]
        return JudgedBatch(system, cases, answers, wanted_answers(cases, unedited), greedy=self.protocol.top_k == 1)


def route_to_json(route: Route) -> dict[str, Any]:
    """The part of a routing decision that a verdict keeps."""
    names = ("familiar", "by", "score", "entropy", "threshold")
    nearest = route.nearest[0] if route.nearest else None
    near = {"nearest": nearest.edit.id, "similarity": nearest.similarity} if nearest else {"nearest": None}
    return {name: getattr(route, name) for name in names} | near
