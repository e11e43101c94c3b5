"""MegEdit itself, as one of the methods, and what is left of it without one of its parts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from megedit.baselines.method import Method
from megedit.edits import Edit, EditSet
from megedit.evaluate.systems import MegSystem, System
from megedit.fitting import fit
from megedit.model import MegModel
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.progress import Stages
from megedit.settings import FitSettings


class Meg(Method):
    """One fit of an adapter, with the model that answers with it."""

    name: ClassVar[str] = "meg"
    source: ClassVar[str] = "arXiv 2512.14395; docs/method.md"
    settings_type: ClassVar[type[FitSettings]] = FitSettings
    settings: FitSettings
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _model: MegModel | None = None
    _bytes = 0

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        base, self._folder = self.base, tempfile.TemporaryDirectory()
        adapter = fit(
            base.name,
            EditSet.of(edits, "bench"),
            Path(self._folder.name) / "adapter",
            self.settings,
            device=base.device,
            stages=Stages(Console(quiet=True)),
            loaded=(base.model, base.tokenizer),
        )
        self._model = MegModel(base.model, base.tokenizer, adapter)
        self._bytes = sum(path.stat().st_size for path in Path(self._folder.name).rglob("*") if path.is_file())
        advance(len(edits))

    def restore(self) -> None:
        if self._model is not None and self._folder is not None:
            self._model.detach()
            self._folder.cleanup()
        self._model = self._folder = None

    @property
    def stored_bytes(self) -> int:
        return self._bytes if self._model is not None else 0

    def system(self) -> System:
        return super().system() if self._model is None else MegSystem(self._model, self.name)
