"""Progress of long work: a bar with the time left on a terminal, one line a finished stage elsewhere; costs and a log
kept."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from megedit.runtime.callbacks import Advance
from megedit.runtime.files import write_whole

logger = logging.getLogger("megedit")
run_logger = logging.getLogger("megedit.run")  # for the log file only: a terminal shows the same in other ways
run_logger.propagate = False
run_logger.setLevel(logging.INFO)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Within the context, append the times of all stages, and every warning, to a file."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is told by what fails next
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for target in (logger, run_logger):
        target.addHandler(handler)
    try:
        yield
    finally:
        for target in (logger, run_logger):
            target.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class Stages:
    """Runs named stages and remembers what each cost.

    costs: stage -> {"seconds": wall clock, summed over interruptions, and what `peak_memory` gives at its end}.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.costs: dict[str, dict[str, float]] = {}
        self._kept: Path | None = None

    def keep_costs(self, path: Path) -> None:
        """Write the costs to a file whenever a stage ends or is interrupted; what it holds already counts as well."""
        earlier: dict[str, dict[str, float]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._kept = path
        for name, cost in earlier.items():
            self._add(name, cost)

    def _add(self, name: str, cost: Mapping[str, float]) -> None:
        before = self.costs.get(name, {})
        peaks = {key: max(before.get(key, 0.0), value) for key, value in cost.items() if key != "seconds"}
        self.costs[name] = {"seconds": round(before.get("seconds", 0.0) + cost["seconds"], 2), **peaks}
        if self._kept:
            with suppress(OSError):  # a full disk is reported by the stage's own result
                write_whole(self._kept, json.dumps(self.costs))

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Within the context, call the yielded function with the number of steps just done."""
        started = time.perf_counter()
        run_logger.info("%s: begun", name)
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
                task = bar.add_task(name, total=total)
                yield lambda done: bar.update(task, advance=done)
        finally:
            seconds, peaks = time.perf_counter() - started, peak_memory()
            self._add(name, {"seconds": seconds, **peaks})
            run_logger.info("%s: %.1f s, peak memory %.0f MB", name, seconds, peaks["peak_memory_mb"])
        self.console.print(f"{name:<28} {seconds:7.1f} s", highlight=False)


def peak_memory() -> dict[str, float]:
    """Megabytes so far: `peak_memory_mb`, the largest resident memory of this process; once it uses a GPU,
    `peak_gpu_memory_mb`, the most that its tensors took on one."""
    found = {"peak_memory_mb": _peak_resident() / 1024**2}
    torch = sys.modules.get("torch")  # where nothing has loaded it, nothing has used a GPU
    if torch is not None and torch.cuda.is_initialized():
        taken = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
        found["peak_gpu_memory_mb"] = max(taken) / 1024**2
    return {name: round(size, 1) for name, size in found.items()}


def _peak_resident() -> int:
    """The largest resident memory of this process, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
