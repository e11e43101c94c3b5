"""The part of the report that takes the results one by one: router, relations, failures. What has no data is None."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from megedit.evaluate.report.charts import Curve, histogram, roc_chart
from megedit.evaluate.report.failures import (
    DECIDING,
    MEANINGS,
    NO_EDIT_KINDS,
    Failure,
    VerdictJson,
    classify,
    deciding_measure,
    deciding_value,
    shortened,
    spread,
)
from megedit.evaluate.report.overview import DASH, ResultJson, Table
from megedit.router.decision import kind_of

RELATION_ROWS = 40
_APART = 100.0  # more than any two scores are


def router(result: ResultJson) -> dict[str, Any] | None:
    """Rates and figures of the router: on these questions and on the held-out ones it was calibrated with."""
    routed = [verdict for verdict in result["verdicts"] if verdict.get("route") and verdict["kind"] != "generation"]
    asks = [verdict["route"] for verdict in routed if verdict["kind"] not in NO_EDIT_KINDS]
    asks_not = [verdict["route"] for verdict in routed if verdict["kind"] in NO_EDIT_KINDS]
    calibration = (result.get("fit") or {}).get("calibration")
    curves, rows, threshold = [], [], None
    if asks and asks_not:
        curve, area = _evaluated_curve(asks, asks_not)
        curves.append(("These questions", curve))
        rows.append(["These questions", f"{area:.4f}", *map(_percent, reversed(curve.chosen or ()))])
    if calibration:
        decisions, rule = calibration.get("decisions") or calibration["rules"], calibration["rule"]  # rules: of old
        kind = rule if rule in decisions else kind_of(rule)
        decision = decisions[kind]
        threshold = f"{decision['threshold']:.3f}"
        chosen = (decision["false_positive_rate"], decision["true_positive_rate"])
        points = [(0.0, 0.0), *((point[1], point[2]) for point in calibration["curve"]), (1.0, 1.0)]
        curves.append(("Held-out questions of the calibration", Curve(points, chosen)))
        rows += [_rule_row(name, each, kind) for name, each in decisions.items()]
    if not curves and not routed:
        return None
    entropies = [[route["entropy"] for route in routes] for routes in (asks, asks_not)]
    label = "Entropy of the familiarity network, nats (log scale)"
    return {
        "rates": Table(["", "AUC", "Recognised", "Let through"], rows) if rows else None,
        "asks": len(asks),
        "asks_not": len(asks_not),
        "threshold": threshold,
        "curves": [name for name, _ in curves],
        "roc": roc_chart([curve for _, curve in curves], "ROC curve of the router") if curves else None,
        "histogram": histogram(entropies, label, "Histogram of entropy") if routed else None,
    }


def _evaluated_curve(asks: Sequence[Mapping[str, Any]], asks_not: Sequence[Mapping[str, Any]]) -> tuple[Curve, float]:
    """ROC of the router on the questions asked, the point at which it decided, and the area under the curve."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = [1] * len(asks) + [0] * len(asks_not)
    scores = [_margin(route) for route in (*asks, *asks_not)]
    false_positive, true_positive, _ = roc_curve(truth, scores)
    chosen = (fmean(route["familiar"] for route in asks_not), fmean(route["familiar"] for route in asks))
    points = list(zip(false_positive.tolist(), true_positive.tolist(), strict=True))
    return Curve(points, chosen), float(roc_auc_score(truth, scores))


def _margin(route: Mapping[str, Any]) -> float:
    """The distance of a score to the threshold; what the gate ended is below, an edit's own words above all others."""
    apart = {"words": _APART, "gate": -_APART}
    return apart.get(route.get("by", ""), float(route["score"] - route["threshold"]))


def _rule_row(name: str, rule: Mapping[str, float], chosen: str) -> list[str]:
    rates = (rule["true_positive_rate"], rule["false_positive_rate"])
    return [f"Held out, {name}{' (in use)' if name == chosen else ''}", f"{rule['auc']:.4f}", *map(_percent, rates)]


def relations(result: ResultJson) -> Table | None:
    """Share of right answers to each kind of question, by relation: the worst first, the best in one row together."""
    decided = [verdict for verdict in result["verdicts"] if deciding_measure(verdict)]
    if not any(verdict.get("relation") for verdict in decided):
        return None
    groups: dict[str, list[VerdictJson]] = defaultdict(list)
    for verdict in decided:
        groups[verdict.get("relation") or "none given"].append(verdict)
    kinds = {
        verdict["kind"]: f"{kind_label(verdict['kind'])}, {DECIDING[str(deciding_measure(verdict))]}"
        for verdict in decided
    }
    ordered = sorted(groups.items(), key=lambda item: (_mean(item[1]), -len(item[1]), item[0]))
    shown, rest = ordered[:RELATION_ROWS], ordered[RELATION_ROWS:]
    if rest:
        shown.append((f"others ({len(rest)} relations)", [verdict for _, group in rest for verdict in group]))
    rows = [
        [name, f"{len({verdict['edit'] for verdict in group}):,}"]
        + [_mean_text([verdict for verdict in group if verdict["kind"] == kind]) for kind in kinds]
        for name, group in shown
    ]
    return Table(["Relation", "Edits", *kinds.values()], rows)


def failures(result: ResultJson, examples: int) -> list[dict[str, Any]] | None:
    """Each kind of failure that was possible: how often it happened, of how many questions, and some examples."""
    decided = [verdict for verdict in result["verdicts"] if deciding_measure(verdict)]
    members: dict[str, set[str]] = defaultdict(set)
    for verdict in result["verdicts"]:
        members[verdict["group"]].add(verdict["edit"])
    found: dict[Failure, list[VerdictJson]] = {failure: [] for failure in MEANINGS}
    for verdict in decided:
        if failure := classify(verdict, members[verdict["group"]]):
            found[failure].append(verdict)
    possible = Counter(kind for verdict in decided for kind in _possible(verdict))
    sections = [
        {
            "name": failure.capitalize(),
            "meaning": MEANINGS[failure],
            "count": len(verdicts),
            "of": possible[failure],
            "share": _percent(len(verdicts) / possible[failure]),
            "examples": [_example(verdict) for verdict in spread(verdicts, examples)],
        }
        for failure, verdicts in found.items()
        if possible[failure]
    ]
    return sections or None


def kind_label(kind: str) -> str:
    return kind.replace("_", " ").replace(":", ", ").capitalize()


def _possible(verdict: VerdictJson) -> tuple[Failure, ...]:
    if verdict["kind"] in NO_EDIT_KINDS:
        return ("neighbour disturbed",)
    if verdict.get("route") is None:
        return ("wrong answer",)
    return ("not routed", "wrong neuron", "right neuron, wrong words")


def _example(verdict: VerdictJson) -> dict[str, Any]:
    unedited = (verdict.get("unedited") or {}).get("answer")
    route = verdict.get("route")
    return {
        "kind": kind_label(verdict["kind"]),
        "edit": verdict["edit"],
        "query": shortened(verdict["query"]),
        "expected": [shortened(answer) for answer in verdict["answers"]],
        "edited": _shortened(verdict["edited"]["answer"]),
        "unedited": _shortened(unedited),
        "route": route
        and {
            "familiar": route["familiar"],
            "numbers": f"score {route['score']:.2f}, entropy {route['entropy']:.2g}, "
            f"similarity {route['similarity']:.2f} to",
            "nearest": route["nearest"],
        },
    }


def _shortened(answer: str | None) -> str | None:
    return None if answer is None else shortened(answer)


def _mean(verdicts: Sequence[VerdictJson]) -> float:
    return fmean(value for verdict in verdicts if (value := deciding_value(verdict)) is not None)


def _mean_text(verdicts: Sequence[VerdictJson]) -> str:
    return f"{100 * _mean(verdicts):.1f}" if verdicts else DASH


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
