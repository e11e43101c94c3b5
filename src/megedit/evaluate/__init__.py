"""Evaluation: strict metrics, named protocols, every verdict kept."""

from megedit.evaluate.metrics import Metrics
from megedit.evaluate.protocol import Evaluation, EvaluationSettings, evaluate, examples

__all__ = ["Evaluation", "EvaluationSettings", "Metrics", "evaluate", "examples"]
