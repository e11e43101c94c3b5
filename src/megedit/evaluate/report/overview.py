"""The part of the report that has all results side by side: tables and figures. What has no data is None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megedit.evaluate.report.charts import bar_chart, scaling_chart

ResultJson = Mapping[str, Any]
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Header and rows of texts; the first text of a row names it.

    groups: names above the other columns, of which each has as many. numbers: whether those columns are numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[str] = ()
    numbers: bool = True


def labels_of(results: Sequence[ResultJson]) -> list[str]:
    """The systems' names; a name that occurs again gets a number."""
    seen: Counter[str] = Counter()
    labels = []
    for result in results:
        name = str(result["system"]["name"])
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels


def measured(results: Sequence[ResultJson], labels: Sequence[str]) -> Table:
    """The systems, the data and the protocol of each result."""
    rows = {
        "Base model": [result["system"].get("base") for result in results],
        "Edits in the model": [result["system"].get("edits") for result in results],
        "Data": [result["data"]["source"] for result in results],
        "Edits asked": [result["data"]["edits"] for result in results],
        "Protocol": [f"{result['protocol']['name']}, version {result['protocol']['version']}" for result in results],
        "Settings": [_settings(result["protocol"]["settings"]) for result in results],
        "Date": [result.get("made") for result in results],
        "Identity": [str(result["system"].get("identity") or "")[:16] for result in results],
    }
    return by_result(rows, labels)


def metrics(results: Sequence[ResultJson], labels: Sequence[str]) -> Table | None:
    """Every metric with its interval, edited beside unedited."""
    rows = [[label, *(cell for metric in found for cell in _metric_cells(metric))] for label, found in _found(results)]
    header = ["Metric", *("Edited", "Unedited", "n") * len(labels)]
    return Table(header, rows, groups_of(labels)) if rows else None


def bars(results: Sequence[ResultJson], description: str) -> Markup | None:
    """Bars of the percentages: of edited and unedited model, or of the edited models if there are several."""
    groups = []
    for label, found in _found(results):
        series = [metric and metric["edited"] for metric in found]
        if len(results) == 1 and found[0]:
            series.append(found[0]["unedited"])
        if any(series) and all(metric["unit"] == "%" for metric in found if metric):
            groups.append((label, series))
    return bar_chart(groups, description) if groups else None


def scaling(results: Sequence[ResultJson], description: str) -> Markup | None:
    """Score against the number of edits, where that number differs.

    One line joins the results only if no number occurs twice: otherwise they are different methods.
    """
    points: list[tuple[float, Mapping[str, float]] | None] = []
    for result in results:
        count = result["system"].get("edits") or result["data"]["edits"]
        score = next((metric["edited"] for metric in result["metrics"] if metric["name"] == "score"), None)
        points.append((float(count), score) if count and score else None)
    counts = [point[0] for point in points if point]
    different = len(set(counts))
    return scaling_chart(points, different == len(counts), description) if different > 1 else None


def costs(results: Sequence[ResultJson], labels: Sequence[str]) -> Table | None:
    """Time and memory of each stage of the fit, and time of the evaluation."""
    stages = [_stages(result) for result in results]
    rows = []
    for name in dict.fromkeys(name for each in stages for name in each):
        cost = [each.get(name, {}) for each in stages]
        rows.append([name, *(text for each in cost for text in (_duration(each), _memory(each)))])
    header = ["Stage", *("Time", "Peak memory") * len(labels)]
    return Table(header, rows, groups_of(labels)) if rows else None


def environment(results: Sequence[ResultJson], labels: Sequence[str]) -> Table | None:
    """The machine, the versions, the commit."""
    found = [
        {name.replace("_", " ").capitalize(): value for name, value in (result.get("machine") or {}).items()}
        | dict(result.get("versions") or {})
        | {"Commit": result.get("commit")}
        for result in results
    ]
    names = dict.fromkeys(name for each in found for name in each)
    table = by_result({name: [each.get(name) for each in found] for name in names}, labels)
    return table if table.rows else None


def _found(results: Sequence[ResultJson]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """Label of each metric that anyone has, and the metric in each result; the Score last."""
    named = [
        {each["name"]: each for each in result["metrics"] if each["edited"] or each["unedited"]} for result in results
    ]
    names = sorted(dict.fromkeys(name for each in named for name in each), key=lambda name: name == "score")
    return [
        (next(each[name]["label"] for each in named if name in each), [each.get(name) for each in named])
        for name in names
    ]


def _metric_cells(metric: Mapping[str, Any] | None) -> list[str]:
    if metric is None:
        return [DASH] * 3
    counts = [each["count"] for each in (metric["edited"], metric["unedited"]) if each]
    return [*(estimate_cell(metric[model], metric["unit"]) for model in ("edited", "unedited")), f"{counts[0]:,}"]


def estimate_cell(estimate: Mapping[str, float] | None, unit: str = "%") -> str:
    """A value and its interval, as a cell of a table."""
    if estimate is None:
        return DASH
    value, low, high = (f"{estimate[part]:.{1 if unit == '%' else 2}f}" for part in ("value", "low", "high"))
    shown_unit = "" if unit == "%" else f" {unit}"
    return Markup("<b>{}{}</b> <small>{}{}{}</small>").format(value, shown_unit, low, DASH, high)


def _stages(result: ResultJson) -> dict[str, Mapping[str, float]]:
    stages = dict((result.get("fit") or {}).get("stages") or {})
    if len(stages) > 1:
        stages["Fit in all"] = {"seconds": sum(each.get("seconds", 0.0) for each in stages.values())}
    if result.get("seconds") is not None:
        stages["Evaluation"] = {"seconds": result["seconds"]}
    return stages


def _duration(cost: Mapping[str, float]) -> str:
    if "seconds" not in cost:
        return DASH
    seconds = cost["seconds"]
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _memory(cost: Mapping[str, float]) -> str:
    return f"{cost['peak_memory_mb']:,.0f} MB" if "peak_memory_mb" in cost else DASH


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')}: {'not set' if value is None else _text(value)}" for name, value in settings.items()
    )


def by_result(rows: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> Table:
    """A column for each result; rows of which no result has anything are left out."""
    filled = [
        [name, *map(_text, cells)] for name, cells in rows.items() if any(cell not in (None, "") for cell in cells)
    ]
    return Table(["", *labels] if len(labels) > 1 else [], filled, numbers=False)


def groups_of(labels: Sequence[str]) -> Sequence[str]:
    """The names above the columns of several results."""
    return labels if len(labels) > 1 else ()


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return DASH if value is None else str(value)
