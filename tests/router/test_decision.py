"""The router's decision: one arithmetic for numbers, NumPy and torch; its JSON; the curve of the shipped verifier."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from megedit.router.curve import curve, threshold_for
from megedit.router.decision import FEATURES, Calibration, Decision, Features, kind_of

LENIENT = Decision(Features(-2.0, 8.0), 2.0, 0.99, 0.97, 0.01)
QUERIES = [(-1.0, 0.5), (-1.0, 0.125), (0.5, 0.0), (0.5, -0.125), (0.0, 0.25)]
SCORES = [6.0, 3.0, -1.0, -2.0, 2.0]
ACCEPTED = [True, True, False, False, True]


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_are_decided_like_numbers(array: type) -> None:
    features = Features(*map(array, zip(*QUERIES, strict=True)))
    assert LENIENT.score(features).tolist() == [LENIENT.score(Features(*query)) for query in QUERIES] == SCORES
    assert LENIENT.accepts(features).tolist() == [LENIENT.accepts(Features(*query)) for query in QUERIES] == ACCEPTED


def test_fields_of_later_versions_are_ignored() -> None:
    values = {**LENIENT.__dict__, "weights": [-2.0, 8.0], "margin": 3}
    assert Decision.from_json(values) == LENIENT


def test_calibration_json_round_trip() -> None:
    calibration = Calibration("entropy", {"entropy": LENIENT, "similarity": LENIENT}, 0.5, [(1.25, 0.0, 0.5)])
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert calibration.decision is calibration.decision_for(learned=True) is calibration.decisions["entropy"]
    assert calibration.decision_for(learned=False) is calibration.decisions["similarity"]


def test_every_rule_has_features() -> None:
    assert kind_of("verified") == "combined" and all(kind_of(kind) == kind for kind in FEATURES)


def test_more_false_fires_are_a_lower_threshold() -> None:
    points = curve()
    for above, below in pairwise(points):
        assert above.threshold > below.threshold and above.false_fires < below.false_fires
        assert above.recognised <= below.recognised
        assert threshold_for(above.false_fires) == pytest.approx(above.threshold)
        middle = (above.false_fires + below.false_fires) / 2
        assert below.threshold < threshold_for(middle) < above.threshold
    assert threshold_for(0) == points[0].threshold and threshold_for(0.99) == points[-1].threshold
