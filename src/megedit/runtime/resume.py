"""Finished stages of a long run, kept on disk: a run that was killed goes on where it was."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megedit.errors import MegError
from megedit.runtime.checkpoint import Checkpoint, State
from megedit.runtime.files import replacing, write_whole
from megedit.runtime.processes import ALONE, Processes
from megedit.runtime.tensors import load_tensors, save_tensors

LOCK = "lock"

logger = logging.getLogger("megedit")


class Workspace:
    """Finished stages of a run, beside its result to be: `.NAME.fit/KEY/`, where the key is a digest of all input.

    An unfinished run of other input stays there, and goes on when that input is given again. No two runs to one result
    go on at a time: the second raises MegError. Of several processes, which must all see the folder, the main one
    writes and the others read what it wrote; a stage is computed by all of them, or by none.
    """

    def __init__(self, out: Path, key: str, processes: Processes = ALONE) -> None:
        self._out, self._processes, self._all = out, processes, out.parent / f".{out.name}.fit"
        self.folder, self._lock = self._all / key[:16], FileLock(self._all / LOCK)
        with self._clear_errors():
            if processes.main:
                self._all.mkdir(parents=True, exist_ok=True)
                self._take()
                if self.folder.is_dir():
                    logger.info("Continuing the interrupted run in %s.", self.folder)
                elif others := self._others():
                    logger.warning(
                        "Starting anew: the unfinished run in %s had other settings, facts or versions. It is kept; "
                        "give the same again to go on with it, or delete it.",
                        ", ".join(map(str, others)),
                    )
                self.folder.mkdir(exist_ok=True)
        processes.wait()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _take(self) -> None:
        """Hold the result for this process; it is free again when the process ends, however it ends."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise MegError(
                f"Another process is making {self._out} just now; wait until it is done or choose another place."
            ) from error
        except NotImplementedError:  # a disk without locks: two at a time are then the user's affair
            pass

    def _others(self) -> list[Path]:
        """The unfinished runs of other input."""
        return sorted(path for path in self._all.iterdir() if path.is_dir() and path != self.folder)

    def missing(self, name: str) -> bool:
        """True when a file or folder of a stage is still to be made."""
        return self._processes.agree(not (self.folder / name).exists())

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]], packed: bool = False) -> dict[str, Tensor]:
        """A stage's tensors, read where it is done, else computed and written; always as they are stored."""
        path = self.folder / f"{name}.safetensors"
        if self.missing(path.name):
            tensors = compute()
            self._write(name, lambda: save_tensors(tensors, path, packed=packed))
        return load_tensors(path)

    def json(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A stage's JSON object, likewise."""
        path = self.folder / f"{name}.json"
        if self.missing(path.name):
            text = json.dumps(compute())
            self._write(name, lambda: write_whole(path, text))
        return dict(json.loads(path.read_text("utf-8")))

    def files(self, name: str, fill: Callable[[Path], None]) -> None:
        """Write the folder of a finished stage, under a temporary name first."""
        partial = self.folder / f"{name}.partial"

        def write() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            partial.replace(self.folder / name)

        self._write(name, write)

    def shard(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A part of a stage that this process computes alone, unless it is there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            tensors = compute()
            with self._clear_errors():
                save_tensors(tensors, path)
        return load_tensors(path)

    def checkpoint(self, name: str) -> Checkpoint:
        """Where a stage keeps the state of its training until it is done."""
        path = self._checkpoint_file(name)

        def save(state: State) -> None:
            if self._processes.main:
                with self._clear_errors(), replacing(path) as partial:
                    save_file(state, partial)

        return Checkpoint(lambda: load_file(path) if path.exists() else None, save)

    def remove(self) -> None:
        """Take the folder away, and the lock; unfinished runs of other input stay."""
        self._processes.wait()
        if self._processes.main:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self._others():
                shutil.rmtree(self._all, ignore_errors=True)
        self._lock.release()

    def _checkpoint_file(self, name: str) -> Path:
        return self.folder / f"{name}.training.safetensors"

    def _write(self, name: str, write: Callable[[], None]) -> None:
        """Let the main process write a finished stage, whose checkpoint is then of no more use."""
        if self._processes.main:
            with self._clear_errors():
                write()
                self._checkpoint_file(name).unlink(missing_ok=True)
        self._processes.wait()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise MegError(
                f"{self.folder} cannot be written ({error}); make room and run the same command again to go on."
            ) from error
