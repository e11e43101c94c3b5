"""Running a protocol: every question asked in batches, every answer, routing decision and verdict kept.

The edited and the unedited subject answer in batches of the same shape, since in bfloat16 the answers of any model
depend on its batch. Finished batches are kept in a journal, so that an interrupted evaluation goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from megedit.edits.edit_set import EditSet
from megedit.errors import MegError
from megedit.evaluate.batch import Asked, needs_answers
from megedit.evaluate.protocols import Case, EvaluationSettings, Measure, Metric, Protocol, describe
from megedit.evaluate.statistics import Estimate, estimates
from megedit.evaluate.systems import Answer, Subject
from megedit.model import Route
from megedit.runtime.provenance import machine, versions

FORMAT = 1
REDUCTIONS: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "all": min, "any": max}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """What a subject said to a case, and what that is worth under each measure that could be taken."""

    answer: str | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """A case, both subjects' answers to it, and what the router made of it."""

    case: Case
    edited: Judged
    unedited: Judged | None
    route: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        unedited = asdict(self.unedited) if self.unedited else None
        return {**asdict(self.case), "edited": asdict(self.edited), "unedited": unedited, "route": self.route}

    @classmethod
    def from_json(cls, case: Case, values: Mapping[str, Any]) -> Verdict:
        """The verdict on a case that `to_json` wrote."""
        unedited = Judged(**values["unedited"]) if values["unedited"] else None
        return cls(case, Judged(**values["edited"]), unedited, values["route"])


@dataclass(frozen=True)
class Measured:
    """One metric, or the Score, of both subjects."""

    name: str
    label: str
    unit: str
    edited: Estimate | None
    unedited: Estimate | None


@dataclass(frozen=True)
class Evaluation:
    """The result: the metrics and all they come from."""

    protocol: Mapping[str, Any]
    subject: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...]
    fit: Mapping[str, Any] | None
    seconds: float
    made: str

    @property
    def edited(self) -> dict[str, float | None]:
        """Metric -> value of the edited subject; None where the data has nothing for it."""
        return {metric.name: metric.edited.value if metric.edited else None for metric in self.metrics}

    @property
    def unedited(self) -> dict[str, float | None]:
        """The same of the unedited subject."""
        return {metric.name: metric.unedited.value if metric.unedited else None for metric in self.metrics}

    @property
    def counts(self) -> dict[str, int]:
        """Kind of case -> how many were asked."""
        kinds = [verdict.case.kind for verdict in self.verdicts]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object; docs/evaluation.md describes it."""
        return {
            "format": FORMAT,
            "protocol": dict(self.protocol),
            "subject": dict(self.subject),
            "data": dict(self.data),
            "metrics": [asdict(metric) for metric in self.metrics],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "fit": self.fit,
            "seconds": round(self.seconds, 1),
            "machine": machine(),
            "versions": versions(),
            "made": self.made,
        }


def run(
    protocol: Protocol,
    edited: Subject,
    unedited: Subject | None,
    edits: EditSet,
    settings: EvaluationSettings,
    *,
    unfamiliar_is_unedited: bool = False,
    subject: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    journal: Path | None = None,
    progress: Progress = lambda done: None,
    check: Callable[[Sequence[Case]], None] = lambda cases: None,
) -> Evaluation:
    """Ask both subjects everything the protocol asks of these edits.

    unfamiliar_is_unedited: the edited subject answers what its router does not let through exactly as the unedited
    one does, so that batches without a familiar row need not be asked twice. journal: file for finished batches.
    check: sees the cases before anything is asked, and may raise. progress: called with the number of cases just done.

    Raises MegError when there is nothing to evaluate.
    """
    metrics, settings = protocol.with_settings(settings)
    cases = cases_of(edits, protocol, settings)
    check(cases)
    started = time.perf_counter()
    asker = _Asker(protocol, metrics, settings, edited, unedited, unfamiliar_is_unedited)
    routes = _routes(edited, cases, settings.batch_size)
    batches = list(_batches(cases, routes, settings.batch_size))
    verdicts: dict[int, Verdict] = {}
    with _Journal(
        journal, [protocol.name, protocol.version, asdict(settings), [asdict(case) for case in cases]]
    ) as kept:
        for number, batch in enumerate(batches):
            done = kept.get(number)
            if done is None:
                found = asker.ask([cases[i] for i in batch], [routes[i] for i in batch] if routes else None)
                kept.add(number, found)
            else:
                found = [Verdict.from_json(cases[i], values) for i, values in zip(batch, done, strict=True)]
            verdicts.update(zip(batch, found, strict=True))
            progress(len(batch))
    ordered = tuple(verdicts[i] for i in range(len(cases)))
    return Evaluation(
        protocol=describe(protocol, settings),
        subject={"name": edited.name, "base": None, "edits": None, "identity": edited.identity, **(subject or {})},
        data={"source": edits.source, "edits": len(edits), "dropped": edits.dropped_summary()},
        metrics=summarise(ordered, metrics, protocol.score, settings.seed),
        verdicts=ordered,
        fit=fit,
        seconds=time.perf_counter() - started,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def cases_of(edits: EditSet, protocol: Protocol, settings: EvaluationSettings) -> list[Case]:
    """What the protocol asks of these edits. Raises MegError when that is nothing, or the data lacks what it needs."""
    cases = list(protocol.cases(edits, protocol.with_settings(settings)[1]))
    if not cases:
        raise MegError("There are no edits to evaluate.")
    return cases


def summarise(
    verdicts: Sequence[Verdict], metrics: Sequence[Metric], score: Sequence[str], seed: int = 0
) -> tuple[Measured, ...]:
    """The metrics of a list of verdicts and, last, the Score; percentages with bootstrap intervals over the groups."""
    groups = {group: i for i, group in enumerate(dict.fromkeys(verdict.case.group for verdict in verdicts))}
    columns = [[metric.name for metric in metrics].index(name) for name in score]

    def estimated(judged: Callable[[Verdict], Judged | None]) -> list[Estimate | None]:
        values = np.full((len(groups), len(metrics)), np.nan)
        for column, metric in enumerate(metrics):
            by_group: dict[str, list[float]] = {}
            for verdict in verdicts:
                found = judged(verdict)
                if verdict.case.kind == metric.kind and found is not None and metric.measure in found.values:
                    by_group.setdefault(verdict.case.group, []).append(found.values[metric.measure])
            for group, parts in by_group.items():
                values[groups[group], column] = REDUCTIONS[metric.reduce](parts)
        return estimates(values, columns, seed=seed)

    edited, unedited = estimated(lambda verdict: verdict.edited), estimated(lambda verdict: verdict.unedited)
    rows = [(metric.name, metric.label, metric.unit) for metric in metrics] + [("score", "Score", "%")]
    return tuple(
        Measured(name, label, unit, _in_unit(edited[i], unit), _in_unit(unedited[i], unit))
        for i, (name, label, unit) in enumerate(rows)
    )


def _in_unit(estimate: Estimate | None, unit: str) -> Estimate | None:
    if estimate is None or unit != "%":
        return estimate
    return replace(estimate, value=100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)


def _routes(edited: Subject, cases: Sequence[Case], size: int) -> list[Route] | None:
    """The router's decision on every case; None for a subject without a router."""
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


# ---------------------------------------------------------------------------------------------------
# Asking


@dataclass(frozen=True)
class _Asker:
    protocol: Protocol
    metrics: tuple[Metric, ...]
    settings: EvaluationSettings
    edited: Subject
    unedited: Subject | None
    unfamiliar_is_unedited: bool

    def ask(self, batch: Sequence[Case], routes: Sequence[Route] | None) -> list[Verdict]:
        """Verdicts on cases of one kind."""
        kind = batch[0].kind
        measures = sorted({metric.measure for metric in self.metrics if metric.kind == kind})
        freely = needs_answers(measures, batch[0])
        unedited = self._judge(self.unedited, batch, measures, freely, None) if self.unedited else None
        if unedited and self.unfamiliar_is_unedited and routes and not any(route.familiar for route in routes):
            edited = unedited
        else:
            edited = self._judge(self.edited, batch, measures, freely, unedited)
        return [
            Verdict(
                case,
                edited.judged[i],
                unedited.judged[i] if unedited else None,
                _route_to_json(routes[i]) if routes else None,
            )
            for i, case in enumerate(batch)
        ]

    def _judge(
        self,
        subject: Subject,
        batch: Sequence[Case],
        measures: Sequence[Measure],
        freely: bool,
        unedited: _Told | None,
    ) -> _Told:
        """What a subject says, and what that is worth; without `unedited`, it is its own standard of locality."""
        limit, answers = self.settings.max_new_tokens, None
        if freely:
            assert limit is not None
            queries = [case.query for case in batch]
            answers = subject.answers(queries, limit, self.protocol.top_k, self.settings.seed)
        standard = answers if subject is self.unedited else unedited.answers if unedited else None
        wanted = [
            case.answers[0] if case.answers else standard[i] if standard else None for i, case in enumerate(batch)
        ]
        values = Asked(subject, batch, answers, wanted, greedy=self.protocol.top_k == 1).values(measures)
        return _Told(answers, [Judged(answers[i].text if answers else None, row) for i, row in enumerate(values)])


@dataclass(frozen=True)
class _Told:
    answers: Sequence[Answer] | None
    judged: list[Judged]


def _route_to_json(route: Route) -> dict[str, Any]:
    return {
        "familiar": route.familiar,
        "score": route.score,
        "entropy": route.entropy,
        "nearest": route.nearest.id,
        "threshold": route.threshold,
        "named": route.named,
        "similarity": route.similarity,
    }


class _Journal:
    """Finished batches, one JSON line each; a file that another evaluation wrote is started anew."""

    def __init__(self, path: Path | None, key: Any) -> None:
        self._path, self._key = path, hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self._done: dict[int, list[dict[str, Any]]] = {}

    def __enter__(self) -> _Journal:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text("utf-8").split("\n") if self._path.exists() else []
        if lines and lines[0] == self._key:
            for line in lines[1:-1]:  # what stands behind the last line break was cut off
                number, values = json.loads(line)
                self._done[number] = values
            self._path.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
        else:
            self._path.write_text(self._key + "\n", "utf-8")
        return self

    def get(self, number: int) -> list[dict[str, Any]] | None:
        return self._done.get(number)

    def add(self, number: int, verdicts: Sequence[Verdict]) -> None:
        if self._path is not None:
            values = [verdict.to_json() for verdict in verdicts]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, values]) + "\n")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._path is not None and error is None:
            self._path.unlink(missing_ok=True)
