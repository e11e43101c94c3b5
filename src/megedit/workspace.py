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
from torch import Tensor

from megedit.errors import MegError
from megedit.files import write_whole
from megedit.tensors import load_tensors, save_tensors

logger = logging.getLogger("megedit")


class Workspace:
    """Finished stages of a run, beside its result to be: `.NAME.fit/`; started anew when the input has changed."""

    def __init__(self, out: Path, key: str) -> None:
        self.folder = out.parent / f".{out.name}.fit"
        path = self.folder / "key"
        with self._clear_errors():
            if path.is_file() and path.read_text() == key:
                logger.info("Continuing the interrupted run in %s.", self.folder)
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            path.write_text(key)

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]], packed: bool = False) -> dict[str, Tensor]:
        """A stage's tensors, read where it is done, else computed and written; always as they are stored."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            tensors = compute()
            with self._clear_errors():
                save_tensors(tensors, path, packed=packed)
        return load_tensors(path)

    def json(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A stage's JSON object, likewise."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            text = json.dumps(compute())
            with self._clear_errors():
                write_whole(path, text)
        return dict(json.loads(path.read_text("utf-8")))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A folder of a stage: filled under a temporary name, then renamed."""
        partial = self.folder / f"{name}.partial"
        with self._clear_errors():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            partial.replace(self.folder / name)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise MegError(
                f"{self.folder} cannot be written ({error}); make room and run the same command again to go on."
            ) from error
