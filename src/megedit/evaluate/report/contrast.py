"""The report of the protocol `contrast`: recognised and false, by kind, with the texts that went wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from megedit.evaluate.report.charts import bar_chart
from megedit.evaluate.report.failures import shortened, spread
from megedit.evaluate.report.overview import DASH, ResultJson, Table, by_result, environment, estimate_cell, groups_of

FIELDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "protocol": (dict, ("name", "version", "settings")),
    "system": (dict, ("name", "judged_by", "false_fires")),
    "data": (dict, ("source", "facts", "left_out", "prompts", "edits")),
    "kinds": (list, ("side", "kind", "value", "low", "high", "count")),
    "verdicts": (list, ("fact", "side", "kind", "query", "edit", "score", "answer", "right")),
}
JUDGED_BY = {"route": "the edit that the system says it has used", "answer": "the answers"}
TOTALS = {"recognised": "Recognised", "false": "False"}
SIDES = {"fire": "Recognised, by kind", "not": "False, by kind"}
WRONG = {"fire": "Missed", "not": "False"}


def page_values(results: Sequence[ResultJson], labels: Sequence[str], examples: int) -> dict[str, Any]:
    """The values of `contrast.html.jinja`."""
    totals = [(label, [result.get(name) for result in results]) for name, label in TOTALS.items()]
    return {
        "labels": labels,
        "first": results[0],
        "measured": _measured(results, labels),
        "totals": _table("", totals, labels),
        "bars": bar_chart(totals, "Bars of recognised and false"),
        "sides": [_side(results, labels, side) for side in SIDES],
        "blocks": [
            {"label": label, "allowed": _allowed(result), "failures": failures(result, examples)}
            for label, result in zip(labels, results, strict=True)
        ],
        "left_out": _left_out(results, labels),
        "environment": environment(results, labels),
    }


def failures(result: ResultJson, examples: int) -> list[dict[str, Any]]:
    """Of each kind of text with failures: how many there were, of how many texts, and some of them."""
    asked = Counter((verdict["side"], verdict["kind"]) for verdict in result["verdicts"])
    wrong: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for verdict in result["verdicts"]:
        if not verdict["right"]:
            wrong[verdict["side"], verdict["kind"]].append(verdict)
    return [
        {
            "name": f"{WRONG[side]}, {kind}",
            "count": len(wrong[side, kind]),
            "of": asked[side, kind],
            "examples": [_example(verdict, result["data"]) for verdict in spread(wrong[side, kind], examples)],
        }
        for side in WRONG
        for kind in sorted(of for at, of in wrong if at == side)
    ]


def _measured(results: Sequence[ResultJson], labels: Sequence[str]) -> Table:
    rows = {
        "Facts": [result["data"]["source"] for result in results],
        "Facts asked": [result["data"]["facts"] for result in results],
        "Texts counted": [len(result["verdicts"]) for result in results],
        "Judged by": [JUDGED_BY.get(str(of := result["system"]["judged_by"]), of) for result in results],
        "Protocol": [f"{result['protocol']['name']}, version {result['protocol']['version']}" for result in results],
        "Date": [result.get("made") for result in results],
    }
    return by_result(rows, labels)


def _side(results: Sequence[ResultJson], labels: Sequence[str], side: str) -> dict[str, Any] | None:
    """Table and bars of the kinds of one side; None where no result has any."""
    found = [{each["kind"]: each for each in result["kinds"] if each["side"] == side} for result in results]
    rows = [(kind, [each.get(kind) for each in found]) for kind in sorted({kind for each in found for kind in each})]
    if not rows:
        return None
    name = SIDES[side]
    return {"name": name, "table": _table("Kind", rows, labels), "bars": bar_chart(rows, f"Bars of {name.lower()}")}


def _table(first: str, rows: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]], labels: Sequence[str]) -> Table:
    cells = [
        [label, *(cell for each in found for cell in (estimate_cell(each), f"{each['count']:,}" if each else DASH))]
        for label, found in rows
    ]
    return Table([first, *("%", "Texts") * len(labels)], cells, groups_of(labels))


def _allowed(result: ResultJson) -> str | None:
    """The setting of the system beside what came of it, where it has one."""
    allowed, reached = result["system"]["false_fires"], result.get("false")
    if allowed is None or not reached:
        return None
    return f"Set to let {allowed:.1f} % of near misses fire, reached {reached['value']:.1f} %."


def _left_out(results: Sequence[ResultJson], labels: Sequence[str]) -> Table | None:
    reasons = dict.fromkeys(
        reason for result in results for reason, count in result["data"]["left_out"].items() if count
    )
    rows = {reason: [result["data"]["left_out"].get(reason, 0) for result in results] for reason in reasons}
    return by_result({reason.capitalize(): counts for reason, counts in rows.items()}, labels) if rows else None


def _example(verdict: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    edit = verdict["edit"]
    return {
        "query": shortened(verdict["query"]),
        "fact": data["prompts"][verdict["fact"]],
        "fired": None if edit is None else data["edits"].get(edit, edit),
        "score": None if verdict["score"] is None else f"{verdict['score']:.2f}",
        "answer": None if verdict["answer"] is None else shortened(verdict["answer"]),
    }
