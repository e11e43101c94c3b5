"""The tables of editing methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import NONE, Sets, number, table
from benchmarks.router_tables import interval

QUALITY = {
    "Reliability AG": "reliability_ag",
    "Generality AG": "generality_ag",
    "Locality AG": "locality_ag",
    "Score": "score",
}
TEACHER_FORCED = {"Reliability TF": "reliability_tf", "Generality TF": "generality_tf", "Locality TF": "locality_tf"}


def comparison(sets: Sets) -> str:
    """Each method's quality, false fires and cost, briefly."""
    header = ["method", *QUALITY, "recognised", "false fires", "s an edit", "MB kept"]
    return table(header, [_brief(row) for row in _rows(sets)])


def comparison_quality(sets: Sets) -> str:
    """Each method's metrics with their intervals."""
    names = QUALITY | TEACHER_FORCED
    rows = [
        [row["method"], *(interval(_metric(row, name)) for name in names.values())]
        for row in _rows(sets)
        if "error" not in row
    ]
    return table(["method", *names], rows)


def comparison_cost(sets: Sets) -> str:
    """Each method's cost, and whether the base model came back bit for bit."""
    header = ["method", "seconds an edit", "peak memory, MB", "bytes kept", "answers a second", "given back"]
    rows = []
    for row in _rows(sets):
        if "error" in row:
            rows.append([row["method"], row["error"].replace("|", "/"), *[""] * 4])
            continue
        kept = row.get("stored_bytes")
        back = {True: "yes", False: "no", None: NONE}[row.get("restored")]
        cells = [number(row.get("seconds_per_edit"), 3), number(row.get("peak_memory_mb"), 0)]
        cells += [NONE if kept is None else f"{kept:,}", number(row["answers_per_second"]), back]
        rows.append([row["method"], *cells])
    return table(header, rows)


def comparison_settings(sets: Sets) -> str:
    """What was tried for each method, the default first."""
    header = ["method", "changed", *QUALITY]
    rows = []
    for row in _rows(sets):
        changes = ", ".join(row["changes"]) or "nothing"
        metrics = [number((_metric(row, name) or {}).get("value")) for name in QUALITY.values()]
        rows.append([row["method"], changes, *metrics])
    return table(header, rows)


def _rows(sets: Sets) -> list[Mapping[str, Any]]:
    return [row for values in sets.values() for row in values["rows"]]


def _brief(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["method"], "failed", *[""] * (len(QUALITY) + 3)]
    metrics = [number((_metric(row, name) or {}).get("value")) for name in QUALITY.values()]
    fires = row.get("contrast") or {}
    shares = [number((fires.get(name) or {}).get("value")) for name in ("recognised", "false")]
    kept = row.get("stored_bytes")
    cost = [number(row.get("seconds_per_edit"), 2), number(None if kept is None else kept / 1e6)]
    return [row["method"], *metrics, *shares, *cost]


def _metric(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = row.get("metrics", {}).get(name)
    return found
