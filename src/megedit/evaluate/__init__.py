"""Evaluation: strict metrics, named protocols, every verdict kept."""

from megedit.evaluate.metrics import Metrics
from megedit.evaluate.protocol import Case, Evaluation, EvaluationSettings, evaluate, evaluate_cases, examples

__all__ = ["Case", "Evaluation", "EvaluationSettings", "Metrics", "evaluate", "evaluate_cases", "examples"]
