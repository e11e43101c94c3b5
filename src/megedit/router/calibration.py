"""Calibration of the router: the weights and the threshold of every rule, from held-out pseudo-knowledge.

Pseudo-facts play edits: their rephrases should be recognised, neighbouring and unrelated queries should not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megedit.errors import MegError
from megedit.router.decision import RULES, Calibration, Decision, Features, without
from megedit.router.familiarity import train_familiarity
from megedit.router.index import EditVectors
from megedit.router.router import log_entropy, shares_of_names
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.checkpoint import NOWHERE, Checkpoint
from megedit.settings import FamiliaritySettings, Rule

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Curve = list[tuple[float, float, float]]

FEWEST = 2  # familiar and unfamiliar queries from which a rule can be calibrated
INVERSE_REGULARISATION = 100.0  # C of the logistic regression
CURVE_POINTS = 200  # of the ROC, that are kept
MARGIN = 1e-3  # by which a threshold stands above the highest score that it is to refuse


@dataclass(frozen=True)
class CalibrationSet:
    """Held-out queries, texts and vectors: pseudo-facts that play edits, their rephrases, and what must not pass.

    The last `near` of the unfamiliar are other questions about the subjects of the enrolled. Many are so like a
    rephrase that a threshold which refuses nearly all of them would refuse rephrases too: each that is let through
    counts as `near_cost` lost rephrases, and no more.
    """

    enrolled: Tensor  # float32 (facts, size)
    subjects: Sequence[str | None]  # of the enrolled
    familiar: Tensor  # float32 (queries, size)
    unfamiliar: Tensor  # float32 (queries, size)
    queries: Sequence[str]  # the familiar, then the unfamiliar
    near: int = 0


def calibrate(
    edits: EditVectors,
    subjects: Sequence[str | None],
    held_out: CalibrationSet,
    settings: FamiliaritySettings,
    seed: int,
    progress: Advance = no_progress,
    *,
    checkpoint: Checkpoint = NOWHERE,
    dtype: torch.dtype | None = None,
) -> Calibration:
    """Choose the weights and threshold of every rule on held-out pseudo-knowledge.

    The held-out queries are enrolled beside the edits in a network of the same kind, trained for this purpose only,
    so that the threshold fits the density of this edit set. Rules that look at the subject are calibrated where the
    nearest edit has one; when that leaves too few queries, the rule without the subject takes their place.

    Raises MegError when there are too few queries for any rule.
    """
    enrolled = torch.cat([edits.unpack(), held_out.enrolled])  # (edits + facts, size)
    network = train_familiarity(enrolled, settings, seed, progress, checkpoint=checkpoint, dtype=dtype)
    # features of every held-out query, each (queries,)
    vectors = torch.cat([held_out.familiar, held_out.unfamiliar])
    similarity, nearest = (found[:, 0] for found in EditVectors.pack(enrolled).nearest(vectors))
    all_subjects = [*subjects, *held_out.subjects]
    nearest_subjects = [all_subjects[i] for i in nearest.tolist()]
    named = shares_of_names(held_out.queries, nearest_subjects)
    tensors = (log_entropy(network.entropy(vectors)), similarity, named)
    features = Features(*(values.cpu().double().numpy() for values in tensors))
    # what each query is: a rephrase, an unfamiliar one or, not counted, another question about an enrolled subject
    truth = np.arange(len(vectors)) < len(held_out.familiar)
    counted = np.arange(len(vectors)) < len(vectors) - held_out.near
    with_subject = np.array([subject is not None for subject in nearest_subjects])
    rules: dict[Rule, Decision] = {}
    curves: dict[Rule, Curve] = {}
    for rule, looks_at in RULES.items():
        rows = with_subject if "subject" in looks_at else np.full(len(truth), True)
        if min(truth[rows & counted].sum(), (~truth[rows & counted]).sum()) >= FEWEST:
            of_rows = Features(*(values[rows] for values in features))
            rules[rule], curves[rule] = calibrate_rule(rule, of_rows, truth[rows], counted[rows], settings)
    if "combined" not in rules:
        raise MegError(f"Fewer than {FEWEST} held-out queries of a kind are too few to calibrate the router.")
    chosen = settings.rule if settings.rule in rules else without(settings.rule, "subject")
    return Calibration(chosen, rules, curves[chosen])


def calibrate_rule(
    rule: Rule, features: Features, truth: Bools, counted: Bools, settings: FamiliaritySettings
) -> tuple[Decision, Curve]:
    """Calibrate one rule on these queries; returned with points of its ROC curve.

    truth, counted: bool (queries,); what is neither true nor counted is another question about an edited subject.
    """
    from sklearn.metrics import roc_auc_score

    weights = fit_weights(rule, features, truth)
    scores = weights.dot(features)  # (queries,)
    threshold, curve = choose_threshold(scores[counted], truth[counted], scores[~counted], settings)
    # all that follows is of the counted ones alone
    features, scores, truth = Features(*(values[counted] for values in features)), scores[counted], truth[counted]
    unnamed = threshold
    if "subject" in RULES[rule]:
        unnamed = threshold_without_subject(threshold, scores[~truth & (features.subject == 0)])
    decision = Decision(weights, threshold, unnamed, float(roc_auc_score(truth, scores)), 0.0, 0.0)
    accepted = decision.accepts(features)
    rates = float(accepted[truth].mean()), float(accepted[~truth].mean())
    return replace(decision, true_positive_rate=rates[0], false_positive_rate=rates[1]), curve


def fit_weights(rule: Rule, features: Features, truth: Bools) -> Features:
    """Weights of the features that the rule looks at, by logistic regression; 0 for the others."""
    from sklearn.linear_model import LogisticRegression

    used = [name for name in Features._fields if name in RULES[rule]]
    table = np.stack([getattr(features, name) for name in used], axis=1)  # (queries, used)
    fitted = LogisticRegression(class_weight="balanced", C=INVERSE_REGULARISATION).fit(table, truth).coef_[0]
    weights: dict[str, float] = dict(zip(used, map(float, fitted), strict=True))
    return Features(*(weights.get(name, 0.0) for name in Features._fields))


def choose_threshold(scores: Floats, truth: Bools, near: Floats, settings: FamiliaritySettings) -> tuple[float, Curve]:
    """The threshold that recognises most rephrases (`truth`) at the false positives allowed, from the ROC curve.

    near: scores of other questions about enrolled subjects; each let through counts as `near_cost` lost rephrases.
    """
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    # among the thresholds that let through no more than allowed (but one at least), the highest that is worth most
    allowed = max(2, int((false_positive <= settings.false_positives).sum()))
    let_through = (near[:, None] >= thresholds[:allowed]).mean(0) if len(near) else 0.0  # (allowed,)
    best = max(1, int(np.argmax(true_positive[:allowed] - settings.near_cost * let_through)))
    # halfway to the highest score that it refuses
    lowest_accepted = float(thresholds[best])
    refused = scores[scores < lowest_accepted]
    threshold = (lowest_accepted + float(refused.max())) / 2 if len(refused) else lowest_accepted
    count = len(thresholds) - 1  # the first, above all scores, is infinite
    points = np.unique(np.linspace(1, count, min(CURVE_POINTS, count)).round().astype(int))
    return threshold, [(float(thresholds[i]), float(false_positive[i]), float(true_positive[i])) for i in points]


def threshold_without_subject(threshold: float, strange: Floats) -> float:
    """The threshold for queries that do not name the subject: above every unfamiliar one's score (`strange`).

    The subject, where a rule looks at it, is what tells rephrases from questions about another one.
    """
    return max(threshold, float(strange.max(initial=-np.inf)) + MARGIN)
