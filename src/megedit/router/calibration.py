"""Calibration of the router: the weights and the threshold of every rule, from held-out pseudo-knowledge.

Pseudo-facts play edits: their rephrases should be recognised, neighbouring and unrelated queries should not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from megedit.errors import MegError
from megedit.router.familiarity import RULES, FamiliaritySettings, Rule, train_familiarity
from megedit.router.index import EditVectors
from megedit.router.router import WITHOUT_SUBJECT, Calibration, Decision, log_entropy, shares_of_names
from megedit.runtime.callbacks import Advance, no_progress

FEWEST = 2  # familiar and unfamiliar queries from which a rule can be calibrated


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
    unfamiliar: Tensor
    queries: Sequence[str]  # the familiar, then the unfamiliar
    near: int = 0


def calibrate(
    edits: EditVectors,
    subjects: Sequence[str | None],
    held_out: CalibrationSet,
    settings: FamiliaritySettings,
    seed: int,
    progress: Advance = no_progress,
) -> Calibration:
    """Choose the weights and threshold of every rule on held-out pseudo-knowledge.

    The held-out queries are enrolled beside the edits in a network of the same kind, trained for this purpose only,
    so that the threshold fits the density of this edit set. Rules that look at the subject are calibrated where the
    nearest edit has one; when that leaves too few queries, another rule takes their place (`WITHOUT_SUBJECT`).
    """
    enrolled = torch.cat([edits.unpack(), held_out.enrolled])
    network = train_familiarity(enrolled, settings, seed, progress)
    vectors = torch.cat([held_out.familiar, held_out.unfamiliar])
    similarity, nearest = (found[:, 0] for found in EditVectors.pack(enrolled).nearest(vectors))
    all_subjects = [*subjects, *held_out.subjects]
    nearest_subjects = [all_subjects[i] for i in nearest.tolist()]
    named = shares_of_names(held_out.queries, nearest_subjects).numpy()
    entropies = log_entropy(network.entropy(vectors)).cpu().numpy()
    features = np.stack([entropies, similarity.cpu().numpy(), named], axis=1)  # (queries, 3)
    truth = np.arange(len(vectors)) < len(held_out.familiar)
    counted = np.arange(len(vectors)) < len(vectors) - held_out.near
    known = np.array([subject is not None for subject in nearest_subjects])
    rules: dict[Rule, Decision] = {}
    curves: dict[Rule, list[tuple[float, float, float]]] = {}
    for rule, used in RULES.items():
        rows = known if used[2] else np.full(len(truth), True)
        if min(truth[rows & counted].sum(), (~truth[rows & counted]).sum()) >= FEWEST:
            rules[rule], curves[rule] = _decision(features[rows], truth[rows], counted[rows], np.array(used), settings)
    if "combined" not in rules:
        raise MegError(f"Fewer than {FEWEST} held-out queries of a kind are too few to calibrate the router.")
    chosen: Rule = settings.rule if settings.rule in rules else WITHOUT_SUBJECT[settings.rule]
    return Calibration(chosen, rules, curves[chosen])


def _decision(
    features: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    counted: np.ndarray[Any, Any],
    used: np.ndarray[Any, Any],
    settings: FamiliaritySettings,
) -> tuple[Decision, list[tuple[float, float, float]]]:
    """Weights by logistic regression on the features in use; the threshold from the ROC curve, which is returned.

    truth, counted: bool (queries,); what is neither true nor counted is another question about an edited subject.
    """
    weights = np.zeros(len(used))
    weights[used] = LogisticRegression(class_weight="balanced", C=100.0).fit(features[:, used], truth).coef_[0]
    scores, near = features @ weights, (features @ weights)[~counted]
    scores, truth, named = scores[counted], truth[counted], features[counted, 2]
    false_positive, true_positive, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    # among the thresholds that let through no more than allowed (but one at least), the highest that is worth most
    allowed = max(2, int((false_positive <= settings.false_positives).sum()))
    let_through = (near[:, None] >= thresholds[:allowed]).mean(0) if len(near) else 0.0
    best = max(1, int(np.argmax(true_positive[:allowed] - settings.near_cost * let_through)))
    lowest_accepted = float(thresholds[best])
    refused = scores[scores < lowest_accepted]
    threshold = (lowest_accepted + float(refused.max())) / 2 if len(refused) else lowest_accepted
    # the subject, where a rule looks at it, is what tells rephrases from questions about another one: a query that does
    # not name it must score higher than every held-out query that should be refused
    strange = scores[~truth & (named == 0)] if used[2] else scores[:0]
    unnamed = max(threshold, float(strange.max(initial=-np.inf)) + 1e-3)
    accepted = scores >= np.where(used[2] & (named == 0), unnamed, threshold)
    points = np.unique(np.linspace(1, len(thresholds) - 1, min(200, len(thresholds) - 1)).round().astype(int))
    decision = Decision(
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        threshold=threshold,
        unnamed_threshold=unnamed,
        auc=float(roc_auc_score(truth, scores)),
        true_positive_rate=float(accepted[truth].mean()),
        false_positive_rate=float(accepted[~truth].mean()),
    )
    return decision, [(float(thresholds[i]), float(false_positive[i]), float(true_positive[i])) for i in points]
