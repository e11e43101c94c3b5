"""Estimates: means, bootstrap intervals and the Score, on tables worked out by hand."""

import math

import numpy as np
import pytest

from megedit.evaluate import statistics
from megedit.evaluate.metrics import harmonic_mean
from megedit.evaluate.statistics import Estimate, estimates

NAN = math.nan


def test_what_does_not_vary_has_no_width() -> None:
    values = np.array([[0.5, 2.0], [0.5, 2.0], [0.5, 2.0]])
    assert estimates(values) == [Estimate(0.5, 0.5, 0.5, 3), Estimate(2.0, 2.0, 2.0, 3), None]


def test_two_groups() -> None:
    """Their resamples have the means 0, 1/2 and 1, with chances 1/4, 1/2 and 1/4."""
    values = np.array([[0.0], [1.0]])
    assert estimates(values) == [Estimate(0.5, 0.0, 1.0, 2), None]
    assert estimates(values, level=0.2) == [Estimate(0.5, 0.5, 0.5, 2), None]


def test_a_metric_that_some_groups_lack() -> None:
    values = np.array([[0.25, NAN, 1.0], [NAN, NAN, 1.0], [NAN, NAN, 1.0]])
    assert estimates(values) == [Estimate(0.25, 0.25, 0.25, 1), None, Estimate(1.0, 1.0, 1.0, 3), None]
    mean = estimates(np.array([[1.0], [NAN], [0.5], [0.75]]))[0]
    assert mean is not None and (mean.value, mean.count) == (0.75, 3)


def test_a_metric_that_was_never_drawn() -> None:
    seed = next(seed for seed in range(100) if np.random.default_rng(seed).integers(2, size=(1, 2)).all())
    assert estimates(np.array([[0.25], [NAN]]), [0], resamples=1, seed=seed) == [Estimate(0.25, 0.25, 0.25, 1)] * 2


def test_the_score() -> None:
    values = np.array([[0.5, 1.0, 9.0]] * 4)
    assert estimates(values, [0, 1])[-1] == Estimate(2 / 3, 2 / 3, 2 / 3, 4)
    assert estimates(values, [1])[-1] == Estimate(1.0, 1.0, 1.0, 4)
    assert estimates(values, [])[-1] is None
    assert estimates(np.array([[0.5, 0.0]]), [0, 1])[-1] == Estimate(0.0, 0.0, 0.0, 1)


def test_no_score_without_all_of_its_metrics() -> None:
    values = np.array([[0.5, NAN, 1.0]])
    assert estimates(values, [0, 1])[-1] is None
    assert estimates(values, [0, 2])[-1] == Estimate(2 / 3, 2 / 3, 2 / 3, 1)


def test_the_score_counts_groups_with_any_of_its_metrics() -> None:
    values = np.array([[0.5, NAN, 1.0], [NAN, 0.5, 1.0], [NAN, NAN, 1.0]])
    score = estimates(values, [0, 1])[-1]
    assert score == Estimate(0.5, 0.5, 0.5, 2)


def test_metrics_are_resampled_together() -> None:
    """One metric is 1 where the other is 0: a resample has the means (0, 1), (1/2, 1/2) or (1, 0), never (1, 1)."""
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    expected = Estimate(0.5, 0.0, 1.0, 2)
    assert estimates(values, [0, 1]) == [expected, expected, Estimate(0.5, 0.0, 0.5, 2)]


def test_against_a_plain_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws one by one, and the same whatever number of resamples is held at a time."""
    source = np.random.default_rng(5)
    values = source.random((30, 3))
    values[source.random((30, 3)) < 0.3] = NAN
    draws = np.random.default_rng(7).integers(30, size=(200, 30))
    means = np.array([np.nanmean(values[drawn], axis=0) for drawn in draws])
    means = np.column_stack([means, [harmonic_mean(row.tolist()) for row in means]])
    low, high = np.quantile(means, [0.05, 0.95], axis=0)

    found = [e for e in estimates(values, [0, 1, 2], resamples=200, level=0.9, seed=7) if e is not None]
    # Sums in another order round differently.
    assert [e.low for e in found] == pytest.approx(low.tolist(), abs=1e-12)
    assert [e.high for e in found] == pytest.approx(high.tolist(), abs=1e-12)
    assert [e.value for e in found[:3]] == pytest.approx(np.nanmean(values, axis=0).tolist(), abs=1e-12)
    assert found[3].value == harmonic_mean([e.value for e in found[:3]])

    monkeypatch.setattr(statistics, "_CHUNK", 70)
    chunked = [e for e in estimates(values, [0, 1, 2], resamples=200, level=0.9, seed=7) if e is not None]
    assert [e.low for e in chunked] == pytest.approx([e.low for e in found], abs=1e-12)
    assert [e.high for e in chunked] == pytest.approx([e.high for e in found], abs=1e-12)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).random((50, 2))
    before = values.copy()
    assert estimates(values, [0, 1], seed=3) == estimates(values, [0, 1], seed=3)
    assert estimates(values, [0, 1], seed=3) != estimates(values, [0, 1], seed=4)
    assert (values == before).all()


def test_few_draws_are_held_at_a_time() -> None:
    parts = list(statistics._draws(20_000, 120, 0))
    assert max(part.size for part in parts) <= 2**20
    assert sum(len(part) for part in parts) == 120
    assert all((part.sum(1) == 20_000).all() for part in parts)


def test_nothing_to_estimate() -> None:
    assert estimates(np.empty((0, 2)), [0, 1]) == [None, None, None]
    assert estimates(np.full((3, 1), NAN), [0]) == [None, None]
    assert estimates(np.empty((3, 0))) == [None]


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="shape"):
        estimates(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        estimates(np.array([[math.inf]]))
    for column in (-1, 2):
        with pytest.raises(ValueError, match="columns"):
            estimates(np.zeros((3, 2)), [column])
    with pytest.raises(ValueError, match="resamples"):
        estimates(np.zeros((3, 2)), resamples=0)
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="level"):
            estimates(np.zeros((3, 2)), level=level)
