"""General ability: lm-evaluation-harness on the edited and on the unedited model. Needs the extra `general`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megedit.evaluate.lm_eval.general import GeneralResult, MetricResult, TaskResult, general_ability

__all__ = ["GeneralResult", "MetricResult", "TaskResult", "general_ability"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.general"), name)
