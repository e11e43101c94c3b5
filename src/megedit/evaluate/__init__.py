"""Evaluation: named protocols and strict metrics for any edited model, every question, answer and verdict kept."""

from megedit.evaluate.api import evaluate
from megedit.evaluate.protocols import PROTOCOLS, Case, EvaluationSettings, find_protocol
from megedit.evaluate.run import Evaluation, Judged, Measured, Verdict, cases_of
from megedit.evaluate.systems import Answer, FunctionSubject, ModelSubject, Subject

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Case",
    "Evaluation",
    "EvaluationSettings",
    "FunctionSubject",
    "Judged",
    "Measured",
    "ModelSubject",
    "Subject",
    "Verdict",
    "cases_of",
    "evaluate",
    "find_protocol",
]
