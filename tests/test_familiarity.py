"""The router: a network that memorises, an entropy that tells, and a threshold read from held-out queries."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from megedit.familiarity import (
    Calibration,
    CalibrationSet,
    FamiliarityNetwork,
    FamiliaritySettings,
    Router,
    Rule,
    calibrate,
    log_entropy,
    train_familiarity,
    training_steps,
)

SIZE, EDITS = 32, 24
SETTINGS = FamiliaritySettings(classes=10, blocks=2, steps=120, batch_size=EDITS, lr=3e-3)


def unit_vectors(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)), dim=1)


def near(vectors: Tensor, seed: int) -> Tensor:
    """Rephrases: unit vectors at a cosine of about 0.98 to these."""
    return normalize(vectors + 0.2 * unit_vectors(len(vectors), seed), dim=1)


@pytest.fixture(scope="module")
def edits() -> Tensor:
    return unit_vectors(EDITS, 0)


@pytest.fixture(scope="module")
def network(edits: Tensor) -> FamiliarityNetwork:
    return train_familiarity(edits, SETTINGS, seed=0)


def test_entropy_by_hand() -> None:
    network = FamiliarityNetwork(SIZE, FamiliaritySettings(classes=4, blocks=1)).eval()
    vectors = unit_vectors(2, 1)
    torch.nn.init.zeros_(network.head.weight)
    for logits, expected in (
        ([0.0, 0.0, 0.0, 0.0], math.log(4)),
        ([math.log(3), 0.0, -200.0, -200.0], -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))),
        ([500.0, 0.0, 0.0, 0.0], 0.0),
    ):
        network.head.bias.data = torch.tensor(logits)
        torch.testing.assert_close(network.entropy(vectors), torch.full((2,), expected))


def test_the_network_memorises(network: FamiliarityNetwork, edits: Tensor) -> None:
    known, rephrased = network.entropy(edits), network.entropy(near(edits, 2))
    strange = network.entropy(unit_vectors(200, 3))
    assert known.max() < 0.5 * strange.mean()
    assert rephrased.mean() < 0.5 * strange.mean()
    assert (strange >= 0).all() and (strange <= math.log(SETTINGS.classes)).all()
    assert len(network(edits).argmax(1).unique()) > SETTINGS.classes / 2  # of the random classes, most are in use


def test_a_seed_names_a_network(network: FamiliarityNetwork, edits: Tensor) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = train_familiarity(edits, SETTINGS, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = train_familiarity(edits, SETTINGS, seed=1)
    for name, parameter in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], parameter)
    assert not torch.equal(other.head.weight, network.head.weight)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("edits", "steps"), [(1, 300), (3000, 300), (3840, 300), (10_000, 781)])
def test_how_many_steps(edits: int, steps: int) -> None:
    assert training_steps(edits, FamiliaritySettings(steps=300, batch_size=256)) == steps


def test_progress_counts_the_steps(edits: Tensor) -> None:
    done: list[int] = []
    settings = FamiliaritySettings(classes=2, blocks=1, steps=4, batch_size=7 * EDITS)
    train_familiarity(edits, settings, 0, done.append)
    assert done == [1] * training_steps(EDITS, settings) == [1] * 4


def held_out() -> CalibrationSet:
    enrolled = unit_vectors(20, 10)
    return CalibrationSet(enrolled, near(enrolled, 11), unit_vectors(60, 12))


@pytest.mark.parametrize("rule", ["entropy", "combined"])
def test_an_easy_set_is_separated(edits: Tensor, rule: Rule) -> None:
    settings = FamiliaritySettings(
        classes=10, blocks=2, steps=120, batch_size=EDITS, lr=3e-3, rule=rule, false_positives=0.09
    )
    done: list[int] = []
    calibration = calibrate(edits, held_out(), settings, 0, done.append)
    assert sum(done) == training_steps(EDITS + 20, settings)
    assert calibration.rule == rule
    auc = {name: reached["auc"] for name, reached in calibration.rules.items()}
    assert auc.keys() == {"entropy", "similarity", "combined"}
    assert auc["similarity"] == auc["combined"] == 1
    assert auc["entropy"] > 0.97
    chosen = calibration.rules[rule]
    assert calibration.true_positive_rate == chosen["true_positive_rate"] > 0.9
    assert calibration.false_positive_rate == chosen["false_positive_rate"] < 0.1
    assert calibration.entropy_weight < 0
    assert (calibration.similarity_weight > 0) is (rule == "combined")
    # the rates are those of the threshold on the very same queries
    network = train_familiarity(torch.cat([edits, held_out().enrolled]), settings, 0)
    router = Router(network, torch.cat([edits, held_out().enrolled]), calibration)
    familiar, unfamiliar = router.route(held_out().familiar), router.route(held_out().unfamiliar)
    assert familiar.familiar.float().mean().item() == pytest.approx(calibration.true_positive_rate)
    assert unfamiliar.familiar.float().mean().item() == pytest.approx(calibration.false_positive_rate)
    # the curve runs from strict to lenient and ends where everything passes
    thresholds, false_positive, true_positive = zip(*calibration.curve, strict=True)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert list(false_positive) == sorted(false_positive) and list(true_positive) == sorted(true_positive)
    assert (false_positive[-1], true_positive[-1]) == (1.0, 1.0)
    assert all(map(math.isfinite, thresholds))


def test_calibration_is_deterministic(edits: Tensor) -> None:
    torch.manual_seed(1)
    first = calibrate(edits, held_out(), SETTINGS, 0)
    torch.manual_seed(2)
    assert calibrate(edits, held_out(), SETTINGS, 0) == first


def some_calibration(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "rule": "combined",
        "entropy_weight": -2.0,
        "similarity_weight": 10.0,
        "threshold": 9.5,
        "true_positive_rate": 0.97,
        "false_positive_rate": 0.01,
        "rules": {"combined": {"auc": 0.99, "true_positive_rate": 0.97, "false_positive_rate": 0.01}},
        "curve": [(1.25, 0.0, 0.5), (-0.1, 1.0, 1.0)],
    }
    return Calibration(**{**fields, **changes})


def test_calibration_json_round_trip() -> None:
    calibration = some_calibration()
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_the_score() -> None:
    entropy, similarity = torch.tensor([math.e, 1.0, 0.0]), torch.tensor([0.5, 0.9, 1.0])
    expected = torch.tensor([-2 + 5.0, 9.0, -2 * math.log(1e-6) + 10])
    torch.testing.assert_close(some_calibration().score(entropy, similarity), expected)
    assert log_entropy(torch.zeros(1)).isfinite().all()


def test_route(network: FamiliarityNetwork, edits: Tensor) -> None:
    calibration = some_calibration()
    router = Router(network, edits, calibration)
    queries = torch.cat([edits[[5, 3]], near(edits[[7]], 4), unit_vectors(1, 5)])
    routing = router.route(queries)
    similarities = queries @ edits.T
    assert routing.nearest.tolist() == [5, 3, 7, int(similarities[3].argmax())]
    torch.testing.assert_close(routing.similarity[:2], torch.ones(2))
    torch.testing.assert_close(routing.similarity, similarities.amax(1))
    torch.testing.assert_close(routing.entropy, network.entropy(queries))
    torch.testing.assert_close(routing.score, -2 * routing.entropy.log() + 10 * routing.similarity)
    assert routing.threshold == 9.5
    assert torch.equal(routing.familiar, routing.score >= 9.5)
    assert routing.familiar.tolist()[:2] == [True, True] and routing.familiar.dtype == torch.bool


def test_the_threshold_itself_is_familiar(network: FamiliarityNetwork, edits: Tensor) -> None:
    score = Router(network, edits, some_calibration()).route(edits[:1]).score.item()
    for threshold, familiar in ((score, True), (score + 1e-3, False)):
        router = Router(network, edits, some_calibration(threshold=threshold))
        assert router.route(edits[:1]).familiar.tolist() == [familiar]


@pytest.mark.parametrize("wrong", [{"rule": "nearest"}, {"classes": 1}, {"blocks": 0}, {"dropout": 1.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FamiliaritySettings(**wrong)
