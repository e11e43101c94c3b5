"""General ability: lm-evaluation-harness on the edited and on the unedited model. Needs the extra `general`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megedit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from megedit.evaluate.lm_eval.general import GeneralResult, MetricResult, TaskResult, general_ability

__all__ = ["GeneralResult", "MetricResult", "TaskResult", "general_ability"]

__getattr__, __dir__ = on_first_use(__name__, dict.fromkeys(__all__, "general"))
