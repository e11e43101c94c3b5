"""The router's decision: rules by the names of their features, and one arithmetic for numbers, NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megedit.router.decision import RULES, Decision, Features, without
from megedit.settings import Rule

LENIENT = Decision(Features(-2.0, 8.0, 4.0), 2.0, 5.0, 0.99, 0.97, 0.01)
QUERIES = [(-1.0, 0.5, 0.0), (-1.0, 0.125, 0.0), (0.5, 0.0, 1.0), (0.5, -0.125, 1.0), (0.0, 0.25, 0.5)]
SCORES = [6.0, 3.0, 3.0, 2.0, 4.0]
FAMILIAR = [True, False, True, True, True]


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_are_decided_like_numbers(array: type) -> None:
    """With the same thresholds: the higher one where the subject is not named at all."""
    features = Features(*map(array, zip(*QUERIES, strict=True)))
    assert LENIENT.score(features).tolist() == [LENIENT.score(Features(*query)) for query in QUERIES] == SCORES
    assert LENIENT.threshold_for(features).tolist() == [5.0, 5.0, 2.0, 2.0, 2.0]
    assert LENIENT.accepts(features).tolist() == [LENIENT.accepts(Features(*query)) for query in QUERIES] == FAMILIAR


def test_a_rule_without_a_feature_looks_at_the_others() -> None:
    rules: dict[Rule, tuple[Rule, Rule]] = {
        rule: (without(rule, "entropy"), without(rule, "subject")) for rule in RULES
    }
    assert rules == {
        "entropy": ("similarity", "entropy"),
        "similarity": ("similarity", "similarity"),
        "combined": ("similarity", "combined"),
        "named": ("named", "similarity"),
        "subject": ("named", "combined"),
    }


def test_fields_of_later_versions_are_ignored() -> None:
    values = {**LENIENT.__dict__, "weights": [-2.0, 8.0, 4.0], "margin": 3}
    assert Decision.from_json(values) == LENIENT
