"""The result of an evaluation: every question, answer and verdict, and the metrics that they give.

As JSON it is described in docs/evaluation.md; reports and the command line work on that form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from megedit.evaluate.protocols import Case, Metric
from megedit.evaluate.statistics import Estimate, estimates
from megedit.runtime.provenance import machine, versions

FORMAT = 2
REDUCTIONS: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "all": min, "any": max}


@dataclass(frozen=True)
class Judgement:
    """A system's raw answer to a case, and its value under each measure that could be taken.

    cut: the answer did not end within its limit.
    """

    answer: str | None
    values: Mapping[str, float]
    cut: bool = False


@dataclass(frozen=True)
class Verdict:
    """A case, the judgement on both systems, and the edited system's routing decision."""

    case: Case
    edited: Judgement
    unedited: Judgement | None
    route: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        unedited = asdict(self.unedited) if self.unedited else None
        return {**asdict(self.case), "edited": asdict(self.edited), "unedited": unedited, "route": self.route}

    @classmethod
    def from_json(cls, case: Case, values: Mapping[str, Any]) -> Verdict:
        """The verdict on a case that `to_json` wrote."""
        unedited = Judgement(**values["unedited"]) if values["unedited"] else None
        return cls(case, Judgement(**values["edited"]), unedited, values["route"])


@dataclass(frozen=True)
class Measured:
    """One metric, or the Score, of both systems."""

    name: str
    label: str
    unit: str
    edited: Estimate | None
    unedited: Estimate | None


class MetricValues(dict[str, float | None]):
    """Metric -> its value, also as attributes: `values["score"]` is `values.score`."""

    def __getattr__(self, name: str) -> float | None:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no metric {name!r}; choose from {', '.join(self)}") from None


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one protocol, and all they come from.

    seconds: time spent on asking and judging, over all parts of an evaluation that was interrupted.
    """

    protocol: Mapping[str, Any]
    system: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...]
    fit: Mapping[str, Any] | None
    seconds: float
    made: str

    @property
    def edited(self) -> MetricValues:
        """Metric -> value of the edited system; None where the data has nothing for it."""
        return _values((metric.name, metric.edited) for metric in self.metrics)

    @property
    def unedited(self) -> MetricValues:
        """Metric -> value of the unedited system; None where the data has nothing for it."""
        return _values((metric.name, metric.unedited) for metric in self.metrics)

    @property
    def counts(self) -> dict[str, int]:
        """Kind of case -> number of cases."""
        kinds = [verdict.case.kind for verdict in self.verdicts]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; docs/evaluation.md describes it."""
        return {
            "format": FORMAT,
            "protocol": dict(self.protocol),
            "system": dict(self.system),
            "data": dict(self.data),
            "metrics": [asdict(metric) for metric in self.metrics],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "fit": self.fit,
            "seconds": round(self.seconds, 1),
            "machine": machine(),
            "versions": versions(),
            "made": self.made,
        }


def summarise(
    verdicts: Sequence[Verdict], metrics: Sequence[Metric], score: Sequence[str], seed: int = 0
) -> tuple[Measured, ...]:
    """The metrics of a list of verdicts and, last, the Score; percentages with bootstrap intervals over the groups."""
    groups = {group: i for i, group in enumerate(dict.fromkeys(verdict.case.group for verdict in verdicts))}
    columns = [[metric.name for metric in metrics].index(name) for name in score]

    def estimated(judgement: Callable[[Verdict], Judgement | None]) -> list[Estimate | None]:
        values = np.full((len(groups), len(metrics)), np.nan)  # (groups, metrics)
        for column, metric in enumerate(metrics):
            by_group: dict[str, list[float]] = {}
            for verdict in verdicts:
                found = judgement(verdict)
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


def _values(named: Iterable[tuple[str, Estimate | None]]) -> MetricValues:
    return MetricValues({name: estimate.value if estimate else None for name, estimate in named})


def _in_unit(estimate: Estimate | None, unit: str) -> Estimate | None:
    if estimate is None or unit != "%":
        return estimate
    return replace(estimate, value=100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)
