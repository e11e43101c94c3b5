"""Finished stages of a long run, kept on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megedit.errors import MegError
from megedit.runtime.checkpoint import Checkpoint, State
from megedit.runtime.files import replacing, write_whole
from megedit.runtime.processes import ALONE, Processes
from megedit.runtime.tensors import load_tensors, save_tensors

logger = logging.getLogger("megedit")


class Workspace:
    """Finished stages of a run, beside its result to be: `.NAME.fit/`; started anew when the input has changed.

    Of several processes, which must all see the folder, the main one writes and the others read what it wrote; a stage
    is computed by all of them, or by none.
    """

    def __init__(self, out: Path, key: str, processes: Processes = ALONE) -> None:
        self.folder, self._processes = out.parent / f".{out.name}.fit", processes
        path = self.folder / "key"
        with self._clear_errors():
            if processes.main:
                if path.is_file() and path.read_text() == key:
                    logger.info("Continuing the interrupted run in %s.", self.folder)
                else:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.folder.mkdir(parents=True)
                    path.write_text(key)
        processes.wait()

    def missing(self, name: str) -> bool:
        """Whether a file or folder of a stage is still to be made."""
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
        """Take the folder away."""
        self._processes.wait()
        if self._processes.main:
            shutil.rmtree(self.folder, ignore_errors=True)

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
