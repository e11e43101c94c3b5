"""The curve of the shipped verifier: false fires at a threshold, measured on facts that it was not trained on."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from megedit.runtime.shipped import shipped

FILE = "curve.json"  # in the package's data; `python -m training.measure` writes it


class Point(NamedTuple):
    """At a threshold of the verifier's logit, the share of near misses that fire and of rephrases recognised."""

    threshold: float
    false_fires: float
    recognised: float


@cache
def curve() -> tuple[Point, ...]:
    """The points, from the highest threshold to the lowest."""
    points = json.loads(shipped(FILE).read_text("utf-8"))["points"]
    return tuple(Point(*map(float, point)) for point in points)


def threshold_for(false_fires: float) -> float:
    """The threshold at which this share of near misses fires, between the points of the curve; at its ends, theirs."""
    points = curve()
    if false_fires <= points[0].false_fires:
        return points[0].threshold
    for above, below in pairwise(points):
        if false_fires <= below.false_fires:
            way = (false_fires - above.false_fires) / (below.false_fires - above.false_fires)
            return above.threshold + way * (below.threshold - above.threshold)
    return points[-1].threshold
