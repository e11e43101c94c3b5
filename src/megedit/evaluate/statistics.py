"""Means over edits and their uncertainty: percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).

The edits, or whatever the values are grouped by, are what is resampled: the questions of one edit stand or fall
together. All metrics share the same resamples, so that the Score of a resample is that of its metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megedit.evaluate.metrics import harmonic_mean

Floats = NDArray[np.float64]

_CHUNK = 2**20  # drawn groups held at a time: 8 MiB, whatever the number of groups


@dataclass(frozen=True)
class Estimate:
    """A metric, the ends of its interval, in the metric's unit, and from how many groups it was taken."""

    value: float
    low: float
    high: float
    count: int


def estimates(
    values: Floats,
    score: Sequence[int] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Estimate | None]:
    """An estimate of each column and, last, of the Score; the same for the same seed.

    values: float64 (groups, metrics), NaN where a group lacks the metric. A metric is the mean over the groups that
    have it, None if no group has. score: the columns whose harmonic mean is the Score; the Score is None without any,
    or if one of them is None, and its count is of the groups that have at least one. A resample in which no group has
    a metric says nothing of it and is left out of its interval. Nothing is scaled.

    From very few groups the interval is too narrow, from one group it has no width; `count` tells.

    Raises ValueError for values that are not a table of finite numbers or NaN, a column that is not there, or a
    setting out of range.
    """
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError("values must have the shape (groups, metrics) and be finite or NaN")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError("resamples must be at least 1, and level between 0 and 1")
    columns = list(score or ())
    if any(not 0 <= column < values.shape[1] for column in columns):
        raise ValueError(f"score names columns {columns} of {values.shape[1]}")
    there = ~np.isnan(values)  # (groups, metrics)
    counts = there.sum(0).tolist()
    means = _means(np.where(there, values, 0).sum(0), there.sum(0).astype(float)).tolist()
    resampled = _resampled_means(values, there, resamples, seed)  # (resamples, metrics)
    found = [_estimate(means[i], resampled[:, i], counts[i], level) for i in range(values.shape[1])]
    if not columns or any(found[column] is None for column in columns):
        return [*found, None]
    value = harmonic_mean([means[column] for column in columns])
    count = int(there[:, columns].any(1).sum())
    return [*found, _estimate(value, _harmonic_means(resampled[:, columns]), count, level)]


def shares(
    hits: Floats, counts: Floats, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Estimate | None]:
    """An estimate of each column's share, all hits of all groups over all counts; None where nothing is counted.

    hits, counts: float64 (groups, columns). A group with more counts weighs more, unlike in `estimates`; the groups are
    what is resampled. `count` is the sum of the counts.
    """
    parts = [_means(drawn @ hits, drawn @ counts) for drawn in _draws(len(hits), resamples, seed)]
    resampled = np.concatenate(parts) if parts else np.full((resamples, hits.shape[1]), np.nan)
    totals, values = counts.sum(0).astype(int).tolist(), _means(hits.sum(0), counts.sum(0)).tolist()
    return [_estimate(value, resampled[:, i], totals[i], level) for i, value in enumerate(values)]


def _estimate(value: float, resampled: Floats, count: int, level: float) -> Estimate | None:
    if not count:
        return None
    known = resampled[~np.isnan(resampled)]
    if not len(known):  # the few groups that have the metric were never drawn
        return Estimate(value, value, value, count)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Estimate(value, low, high, count)


def _resampled_means(values: Floats, there: NDArray[np.bool_], resamples: int, seed: int) -> Floats:
    """float64 (resamples, metrics): each metric's mean in each resample; NaN where it has no group."""
    zeroed, weights = np.where(there, values, 0.0), there.astype(float)
    parts = [_means(drawn @ zeroed, drawn @ weights) for drawn in _draws(len(values), resamples, seed)]
    return np.concatenate(parts) if parts else np.full((resamples, values.shape[1]), np.nan)


def _draws(groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Count of each group in each resample: float64 (some resamples, groups), until all are drawn."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, groups))
    for first in range(0, resamples if groups else 0, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(groups, size=(rows, groups))
        drawn += np.arange(rows)[:, None] * groups  # one range of bins for each resample
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)


def _means(sums: Floats, counts: Floats) -> Floats:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _harmonic_means(means: Floats) -> Floats:
    """float64 (resamples,): of each row, 0 when one is 0, NaN when one is missing."""
    whole = np.where(means > 0, means, 1.0)
    scores: Floats = means.shape[1] / (1 / whole).sum(1)
    scores[(means <= 0).any(1)] = 0.0
    scores[np.isnan(means).any(1)] = np.nan
    return scores
