"""The metrics of verdicts."""

from __future__ import annotations

import pytest

from megedit.evaluate import (
    PROTOCOLS,
    Case,
    Judgement,
    Verdict,
)
from megedit.evaluate.protocols import Metric
from megedit.evaluate.result import summarise


def verdict(group: str, kind: str, **values: float) -> Verdict:
    return Verdict(Case(group, group, kind, "q"), Judgement("answer", values), None, None)


def test_the_summary() -> None:
    """Averaged within an edit first: edit 1 has three rephrases, edit 2 one."""
    verdicts = [
        *(verdict("1", "generality", ag=value) for value in (1, 1, 0.25)),
        verdict("2", "generality", ag=0),
        verdict("1", "locality", ag=0.5),
    ]
    generality, locality = Metric("G", "generality", "ag"), Metric("L", "locality", "ag")
    measured = summarise(verdicts, [generality, locality], ["generality_ag", "locality_ag"])
    assert [(m.name, m.edited.value if m.edited else None, m.unedited) for m in measured] == [
        ("generality_ag", 37.5, None),
        ("locality_ag", 50.0, None),
        ("score", pytest.approx(2 / (1 / 37.5 + 1 / 50)), None),
    ]
    assert [m.edited.count for m in measured[:2] if m.edited] == [2, 1]
    assert summarise(verdicts[:4], [generality, locality], ["generality_ag", "locality_ag"])[-1].edited is None


def test_instances_count_as_wholes() -> None:
    """Instance-wise: every single hop right; multi-hop: one of the wordings right."""
    verdicts = [
        *(verdict("x", "single_hop", exact=value) for value in (1, 0)),
        *(verdict("x", "multi_hop", exact=value) for value in (0, 1, 0)),
        *(verdict("y", "single_hop", exact=value) for value in (1, 1)),
        *(verdict("y", "multi_hop", exact=value) for value in (0, 0, 0)),
    ]
    metrics = [m for m in PROTOCOLS["multi-hop"].metrics if m.kind != "edit_wise" and m.measure == "exact"]
    measured = summarise(verdicts, metrics, [])
    assert [m.edited.value for m in measured[:2] if m.edited] == [50.0, 50.0]
