"""Changes that take long, and how far they are."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from megedit.operations import Outcome
from megedit.runtime.callbacks import Advance
from megedit.runtime.progress import Stages

logger = logging.getLogger("megedit.serve")

KEPT = 100  # jobs that have ended


class Watched(Stages):
    """Stages that say which of them runs, and how far it is; nothing is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None
        self.done = 0
        self.total: int | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """As in `Stages`."""
        self.name, self.done, self.total = name, 0, total

        def advance(done: int) -> None:
            self.done += done

        yield advance


@dataclass
class Job:
    """A change that runs beside the requests. error: what it failed with."""

    id: str
    kind: str
    stages: Watched
    status: Literal["running", "done", "failed"] = "running"
    result: Outcome | None = None
    error: Exception | None = None


class Jobs:
    """The jobs of a server; one thread each, which wait for one another where they change the adapter."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, kind: str, work: Callable[[Stages], Outcome]) -> Job:
        """Begin a job; returns at once."""
        job = Job(secrets.token_hex(8), kind, Watched())

        def run() -> None:
            try:
                job.result = work(job.stages)
                job.status = "done"
            except Exception as error:  # told to whoever asks for the job
                job.error, job.status = error, "failed"
                logger.info("job failed", extra={"job": job.id, "kind": kind, "error": type(error).__name__})

        thread = threading.Thread(target=run, name=f"megedit {kind} {job.id}")
        with self._lock:
            ended = [name for name, known in self._jobs.items() if known.status != "running"]
            for name in ended[: max(len(ended) - KEPT, 0)]:
                del self._jobs[name]
            self._jobs[job.id] = job
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
            thread.start()
        return job

    def get(self, name: str) -> Job | None:
        """The job of that id, as long as it is remembered."""
        return self._jobs.get(name)

    def all(self) -> list[Job]:
        """The jobs that are remembered, the oldest first."""
        return list(self._jobs.values())

    @property
    def running(self) -> int:
        """The number of jobs that have not ended."""
        return sum(job.status == "running" for job in self.all())

    def join(self) -> None:
        """Wait until all jobs have ended."""
        for thread in list(self._threads):
            thread.join()
