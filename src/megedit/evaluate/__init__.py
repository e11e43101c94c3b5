"""Evaluation: named protocols and strict metrics for any edited model, every question, answer and verdict kept.

Names are loaded on first use, so that the protocols can be listed without a model's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megedit.evaluate.api import evaluate
    from megedit.evaluate.protocols import PROTOCOLS, Case, EvaluationSettings, find_protocol
    from megedit.evaluate.result import Evaluation, Judgement, Measured, Verdict
    from megedit.evaluate.run import cases_of
    from megedit.evaluate.systems import Answer, FunctionSystem, ModelSystem, System

_MODULES = {
    "api": ("evaluate",),
    "protocols": ("PROTOCOLS", "Case", "EvaluationSettings", "find_protocol"),
    "result": ("Evaluation", "Judgement", "Measured", "Verdict"),
    "run": ("cases_of",),
    "systems": ("Answer", "FunctionSystem", "ModelSystem", "System"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Case",
    "Evaluation",
    "EvaluationSettings",
    "FunctionSystem",
    "Judgement",
    "Measured",
    "ModelSystem",
    "System",
    "Verdict",
    "cases_of",
    "evaluate",
    "find_protocol",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
