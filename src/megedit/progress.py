"""Progress of long work: a bar with the time left on a terminal, one line a finished stage elsewhere; costs kept."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]


class Stages:
    """Runs named stages and remembers what each cost.

    costs: stage -> {"seconds": wall clock, "peak_memory_mb": of the process so far}.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.costs: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Within the context, call the yielded function with the number of steps just done."""
        started = time.perf_counter()
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.update(task, advance=done)
        seconds = time.perf_counter() - started
        self.costs[name] = {"seconds": round(seconds, 2), "peak_memory_mb": round(peak_memory_mb(), 1)}
        self.console.print(f"{name:<28} {seconds:7.1f} s", highlight=False)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
