"""Evaluation: named protocols and strict metrics for any edited model, every question, answer and verdict kept.

Names are loaded on first use, so that the protocols can be listed without a model's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megedit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from megedit.evaluate.api import contrast, evaluate
    from megedit.evaluate.firing import ContrastResult, ContrastVerdict
    from megedit.evaluate.protocols import PROTOCOLS, Case, EvaluationSettings, find_protocol
    from megedit.evaluate.result import Evaluation, Judgement, Measured, Verdict
    from megedit.evaluate.run import cases_of
    from megedit.evaluate.systems import Answer, FunctionSystem, ModelSystem, System

_MODULES = {
    **dict.fromkeys(("contrast", "evaluate"), "api"),
    **dict.fromkeys(("ContrastResult", "ContrastVerdict"), "firing"),
    **dict.fromkeys(("PROTOCOLS", "Case", "EvaluationSettings", "find_protocol"), "protocols"),
    **dict.fromkeys(("Evaluation", "Judgement", "Measured", "Verdict"), "result"),
    "cases_of": "run",
    **dict.fromkeys(("Answer", "FunctionSystem", "ModelSystem", "System"), "systems"),
}

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Case",
    "ContrastResult",
    "ContrastVerdict",
    "Evaluation",
    "EvaluationSettings",
    "FunctionSystem",
    "Judgement",
    "Measured",
    "ModelSystem",
    "System",
    "Verdict",
    "cases_of",
    "contrast",
    "evaluate",
    "find_protocol",
]

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
