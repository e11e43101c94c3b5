"""Calibration of the router: weights and thresholds of its gate, or of the rule that decides, from held-out facts.

The facts play edits: their other wordings should be recognised, unrelated queries and those of other facts should not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megedit.errors import MegError
from megedit.router.curve import threshold_for
from megedit.router.decision import FEATURES, Calibration, Decision, Features, Kind, kind_of
from megedit.router.familiarity import FamiliarityNetwork
from megedit.router.index import EditVectors
from megedit.router.router import log_entropy
from megedit.settings import RouterSettings

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Curve = list[tuple[float, float, float]]

FEWEST = 2  # familiar and unfamiliar queries from which a rule can be calibrated
INVERSE_REGULARISATION = 100.0  # C of the logistic regression
CURVE_POINTS = 200  # of the ROC, that are kept


def calibrate(
    network: FamiliarityNetwork, enrolled: EditVectors, familiar: Tensor, unfamiliar: Tensor, settings: RouterSettings
) -> Calibration:
    """Choose weights and thresholds on held-out queries.

    network, enrolled: trained on the edits and on the facts that play edits beside them, so that the thresholds fit the
    density of this edit set; the vectors of both. familiar, unfamiliar: vectors of other wordings of these facts, and
    of what must not pass; float32 (queries, size). Raises MegError when there are too few queries.
    """
    if min(len(familiar), len(unfamiliar)) < FEWEST:
        raise MegError(
            f"Fewer than {FEWEST} held-out queries of a kind are too few to calibrate the router; give more "
            "pseudo-knowledge (--pseudo)."
        )
    vectors = torch.cat([familiar, unfamiliar])
    tensors = (log_entropy(network.entropy(vectors)), enrolled.nearest(vectors)[0][:, 0])
    features = Features(*(values.cpu().double().numpy() for values in tensors))  # each (queries,)
    truth = np.arange(len(vectors)) < len(familiar)
    found = {kind: _calibrate(kind, features, truth, settings) for kind in FEATURES}
    decisions = {kind: decision for kind, (decision, _) in found.items()}
    return Calibration(settings.rule, decisions, threshold_for(settings.false_fires), found[kind_of(settings.rule)][1])


def _calibrate(kind: Kind, features: Features, truth: Bools, settings: RouterSettings) -> tuple[Decision, Curve]:
    """A decision by these features, or a gate, with points of its ROC curve. truth: bool (queries,)."""
    from sklearn.metrics import roc_auc_score

    weights = fit_weights(kind, features, truth)
    scores = weights.dot(features)  # (queries,)
    threshold, curve = choose_threshold(scores, truth, settings.false_positives)
    if settings.rule == "verified":
        threshold = float(np.quantile(scores[truth], settings.gate_loss))
    accepted = scores >= threshold
    rates = float(accepted[truth].mean()), float(accepted[~truth].mean())
    return Decision(weights, threshold, float(roc_auc_score(truth, scores)), *rates), curve


def fit_weights(kind: Kind, features: Features, truth: Bools) -> Features:
    """Weights of the features that are looked at, by logistic regression; 0 for the others."""
    from sklearn.linear_model import LogisticRegression

    used = [name for name in Features._fields if name in FEATURES[kind]]
    table = np.stack([getattr(features, name) for name in used], axis=1)  # (queries, used)
    fitted = LogisticRegression(class_weight="balanced", C=INVERSE_REGULARISATION).fit(table, truth).coef_[0]
    weights: dict[str, float] = dict(zip(used, map(float, fitted), strict=True))
    return Features(*(weights.get(name, 0.0) for name in Features._fields))


def choose_threshold(scores: Floats, truth: Bools, false_positives: float) -> tuple[float, Curve]:
    """The threshold that recognises most at the false positives allowed, and points of the ROC curve."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    # among the thresholds that let through no more than allowed (but one at least), the highest that is worth most
    allowed = max(2, int((false_positive <= false_positives).sum()))
    best = max(1, int(np.argmax(true_positive[:allowed])))
    # halfway to the highest score that it refuses
    lowest_accepted = float(thresholds[best])
    refused = scores[scores < lowest_accepted]
    threshold = (lowest_accepted + float(refused.max())) / 2 if len(refused) else lowest_accepted
    count = len(thresholds) - 1  # the first, above all scores, is infinite
    points = np.unique(np.linspace(1, count, min(CURVE_POINTS, count)).round().astype(int))
    return threshold, [(float(thresholds[i]), float(false_positive[i]), float(true_positive[i])) for i in points]
