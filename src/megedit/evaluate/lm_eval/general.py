"""General ability: lm-evaluation-harness on the edited and on the unedited model.

Source: EleutherAI/lm-evaluation-harness (package lm-eval). Tasks, prompts, filters and metrics are the harness's own;
what is ours is the model that it asks, and the comparison. Needs the extra `general`.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megedit.errors import MegError, needs
from megedit.lm.places import brief
from megedit.model import MegModel

if TYPE_CHECKING:  # needs the harness
    from megedit.evaluate.lm_eval.harness import MegLM

logger = logging.getLogger("megedit")

_LOCAL_FORMATS = ("arrow", "csv", "json", "parquet", "text")  # loaders of `datasets` that read the user's own files
_BOOTSTRAP_ITERS = 1000  # gives a standard error to about 2 %; the harness's 100,000 take minutes for some metrics
_ROUTE_BATCH = 256


# ---------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task. filter: how the harness cut the answer out; stderr: None where it gives none.

    higher_is_better: None where the harness does not say. A value is None where it is not a finite number.
    """

    metric: str
    filter: str
    higher_is_better: bool | None
    edited: float | None
    edited_stderr: float | None
    unedited: float | None
    unedited_stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """A task or a group of tasks.

    version: the task's own. samples: documents asked about. let_through: share (0 to 1) of the distinct contexts that
    the router takes for an edit; only on those can the edited model differ from the unedited one.
    """

    task: str
    version: str | None
    num_fewshot: int | None
    samples: int
    let_through: float
    metrics: tuple[MetricResult, ...]


@dataclass(frozen=True)
class GeneralResult:
    """The result of `general_ability`, with the settings and the version of the harness."""

    harness_version: str
    limit: int | None
    seed: int
    batch_size: int
    tasks: tuple[TaskResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        values = asdict(self)
        values["tasks"] = [{**task, "metrics": list(task["metrics"])} for task in values["tasks"]]
        return values


# ---------------------------------------------------------------------------------------------------
# Tasks


def _load_tasks(names: Sequence[str], folder: Path | None) -> dict[str, dict[str, Any]]:
    """The harness's tasks of these names, with their data: `tasks` and `groups`, as its `evaluate` takes them."""
    manager = _manager(names, folder)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # data, network and the task's own code fail in many ways
            raise MegError(
                f"The task {name} could not be loaded ({brief(error)}); check the network and the task's YAML file, or "
                "put a task with local data into the task folder."
            ) from error
        for leaf, task in loaded["tasks"].items():
            _check_task(leaf, task)
            if leaf in tasks:
                raise MegError(f"The task {leaf} is named twice, once as part of {name}; name it once.")
            tasks[leaf] = task
        groups |= loaded.get("groups", {})
    return {"tasks": tasks, "groups": groups}


def _set_examples(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """The harness's own rule: the user's number where the task does not say none, else the task's, else none."""
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's index of tasks, with its own ones only where they are needed: they take long to read."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    if folder is not None and not folder.is_dir():
        raise MegError(f"The task folder {folder} is not a folder; give one with the YAML files of tasks.")
    own = TaskManager(include_path=str(folder), include_defaults=False) if folder is not None else None
    here = own.task_index if own is not None else {}
    if not all(name in here and _has_local_data(here[name].cfg or {}) for name in names):
        logger.info("lm-evaluation-harness may fetch the data of its tasks from the Hugging Face Hub")
    if own is not None and all(name in here for name in names):
        return own
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.task_index:
            raise MegError(
                f"There is no task {name!r}{'' if folder is None else f' in {folder}'} in lm-evaluation-harness; list "
                "its tasks with `lm-eval ls tasks`, or put the YAML file of your own task into a task folder."
            )
    return manager


def _has_local_data(config: dict[str, Any]) -> bool:
    path = str(config.get("dataset_path") or "")
    is_local = path in _LOCAL_FORMATS or (bool(path) and Path(path).exists())
    return is_local and "://" not in str(config.get("dataset_kwargs"))


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise MegError(f"The task {name} runs code that the model writes, which MegEdit does not; leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise MegError(f"The task {name} asks about more than text, which edited models do not know; leave it out.")


# ---------------------------------------------------------------------------------------------------
# Measuring


def check_harness() -> None:
    """Raise MegError when lm-evaluation-harness is not installed."""
    needs("lm_eval", "general", "measuring general ability")


def general_ability(
    model: MegModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    task_folder: Path | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> GeneralResult:
    """Run tasks of lm-evaluation-harness on the edited and on the unedited model.

    tasks: names of tasks, groups or tags of the harness, or of tasks in `task_folder`, a folder with YAML files in the
    harness's format. limit: ask about the first documents of each task only. num_fewshot: examples before each
    question, where the task does not fix it at none. seed: of the choice of examples and of sampling.

    Raises MegError when lm-eval is not installed, no task is named, a task is not known, its data cannot be loaded, it
    runs code or needs images; ValueError when `limit` or `batch_size` is below 1.
    """
    check_harness()
    if not tasks:
        raise MegError("No task is named; give the name of at least one task of lm-evaluation-harness.")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError("limit and batch_size must be at least 1")
    from megedit.evaluate.lm_eval.harness import MegLM, harness_level

    with harness_level(logging.WARNING), redirect_stdout(io.StringIO()):  # it prints what it does
        loaded = _load_tasks(list(dict.fromkeys(tasks)), task_folder)
        _set_examples(loaded["tasks"], num_fewshot)
        language_model = MegLM(model, batch_size)
        edited = _measure(language_model, loaded, limit, seed)
        with model.disable_edits():
            unedited = _measure(language_model, loaded, limit, seed)
    summaries = _summaries(model, edited, unedited)
    return GeneralResult(version("lm-eval"), limit, seed, batch_size, summaries)


def _measure(language_model: MegLM, loaded: dict[str, dict[str, Any]], limit: int | None, seed: int) -> dict[str, Any]:
    """One run of the harness, from the same seed each time."""
    from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]
    from transformers import set_seed

    set_seed(seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    results: dict[str, Any] = evaluate(language_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP_ITERS)
    return results


def _summaries(model: MegModel, edited: dict[str, Any], unedited: dict[str, Any]) -> tuple[TaskResult, ...]:
    """One result for each task and for each group that has a value of its own."""
    summaries = []
    for name, values in edited["results"].items():
        metrics = _metrics(values, unedited["results"][name], edited["higher_is_better"].get(name, {}))
        if not metrics:
            continue
        leaves = _leaves(name, edited["group_subtasks"])
        task_version = edited["versions"].get(name)
        summaries.append(
            TaskResult(
                task=name,
                version=None if task_version is None else str(task_version),
                num_fewshot=edited["n-shot"].get(name),
                samples=sum(edited["n-samples"][leaf]["effective"] for leaf in leaves),
                let_through=_share_let_through(model, [s for leaf in leaves for s in edited["samples"][leaf]]),
                metrics=metrics,
            )
        )
    return tuple(summaries)


def _metrics(
    edited: dict[str, Any], unedited: dict[str, Any], directions: dict[str, bool | None]
) -> tuple[MetricResult, ...]:
    """The metrics among a task's values, whose keys are `metric,filter` and `metric_stderr,filter`."""
    found = []
    for key in edited:
        metric, comma, by = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = f"{metric}_stderr,{by}"
        numbers = [_number(values.get(name)) for values in (edited, unedited) for name in (key, error)]
        found.append(MetricResult(metric, by, directions.get(metric), *numbers))
    return tuple(found)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) or hasattr(value, "__float__")
    return float(value) if is_number and math.isfinite(float(value)) else None


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, each once; the task itself when it is none."""
    below = children.get(name)
    if not below:
        return [name]
    return list(dict.fromkeys(leaf for child in below for leaf in _leaves(child, children)))


def _share_let_through(model: MegModel, samples: Sequence[dict[str, Any]]) -> float:
    """Share of the distinct contexts whose query is familiar; a request of one part only is a text without query."""
    requests = dict.fromkeys((str(args[0]), len(args) > 1) for sample in samples for args in sample["arguments"])
    find = model.adapter.config.template.query_of
    queries = [query for text, has_query in requests if has_query and (query := find(text))]
    batches = (queries[i : i + _ROUTE_BATCH] for i in range(0, len(queries), _ROUTE_BATCH))
    let_through = sum(bool(route.familiar) for batch in batches for route in model.route(batch))
    return let_through / max(len(requests), 1)
