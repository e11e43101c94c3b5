"""Calibration: an easy set is separated, a gate loses few rephrases, and the curve is that of the queries."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from megedit.errors import MegError
from megedit.router.calibration import calibrate
from megedit.router.curve import threshold_for
from megedit.router.decision import FEATURES, Calibration, Features, kind_of
from megedit.router.familiarity import FamiliarityNetwork, FamiliaritySettings, train_familiarity
from megedit.router.index import EditVectors
from megedit.settings import RouterSettings, Rule

SIZE, FACTS = 32, 44


def unit_vectors(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def enrolled() -> Tensor:
    return EditVectors.pack(unit_vectors(FACTS, 0)).unpack()


@pytest.fixture(scope="module")
def network(enrolled: Tensor) -> FamiliarityNetwork:
    settings = FamiliaritySettings(classes=10, blocks=2, steps=120, batch_size=24, lr=3e-3)
    return train_familiarity(enrolled, settings, seed=0)


def calibrated(network: FamiliarityNetwork, enrolled: Tensor, settings: RouterSettings) -> Calibration:
    """On rephrases of twenty facts and sixty strange queries."""
    rephrased = normalize(enrolled[:20] + 0.2 * unit_vectors(20, 11), dim=1)
    return calibrate(network, EditVectors.pack(enrolled), rephrased, unit_vectors(60, 12), settings)


@pytest.mark.parametrize("rule", ["entropy", "similarity", "combined", "verified"])
def test_an_easy_set_is_separated(network: FamiliarityNetwork, enrolled: Tensor, rule: Rule) -> None:
    calibration = calibrated(network, enrolled, RouterSettings(rule=rule, false_positives=0.09))
    assert calibration.rule == rule and calibration.decisions.keys() == FEATURES.keys()
    assert calibration.threshold == threshold_for(RouterSettings().false_fires)
    auc = {name: reached.auc for name, reached in calibration.decisions.items()}
    assert auc["similarity"] == auc["combined"] == 1 and auc["entropy"] > 0.9
    chosen = calibration.decision
    assert chosen.true_positive_rate > 0.8 and chosen.false_positive_rate < 0.1
    for name, weight, sign in zip(Features._fields, chosen.weights, (-1, 1), strict=True):
        assert sign * weight > 0 if name in FEATURES[kind_of(rule)] else weight == 0
    # the curve runs from strict to lenient and ends where everything passes
    thresholds, false_positive, true_positive = zip(*calibration.curve, strict=True)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert list(false_positive) == sorted(false_positive) and list(true_positive) == sorted(true_positive)
    assert (false_positive[-1], true_positive[-1]) == (1.0, 1.0)
    assert all(map(math.isfinite, thresholds))


def test_a_gate_ends_the_share_of_rephrases_that_it_may(network: FamiliarityNetwork, enrolled: Tensor) -> None:
    passed = [
        calibrated(network, enrolled, RouterSettings(gate_loss=loss)).decision.true_positive_rate
        for loss in (0.0, 0.1, 0.5)
    ]
    assert passed == [1.0, 0.9, 0.5]


def test_calibration_is_deterministic(network: FamiliarityNetwork, enrolled: Tensor) -> None:
    torch.manual_seed(1)
    first = calibrated(network, enrolled, RouterSettings())
    torch.manual_seed(2)
    assert calibrated(network, enrolled, RouterSettings()) == first


def test_too_few_queries_to_calibrate(network: FamiliarityNetwork, enrolled: Tensor) -> None:
    with pytest.raises(MegError, match="too few to calibrate the router"):
        calibrate(network, EditVectors.pack(enrolled), unit_vectors(20, 1), unit_vectors(1, 2), RouterSettings())
