"""MegEdit itself, as one of the methods, and what is left of it without one of its parts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from megedit.baselines.method import Method
from megedit.edits import Edit, EditSet
from megedit.evaluate.systems import MegSystem, System
from megedit.fitting import fit
from megedit.model import MegModel
from megedit.runtime.callbacks import Advance, no_progress
from megedit.runtime.progress import Stages
from megedit.settings import FitSettings

Changes = Mapping[str, Mapping[str, Any]]  # values of settings, by their part and name


class Meg(Method):
    """One fit of an adapter, with the model that answers with it.

    changes: to the settings, by their part: of a method that leaves something out.
    """

    name: ClassVar[str] = "meg"
    source: ClassVar[str] = "arXiv 2512.14395; docs/method.md"
    settings_type: ClassVar[type[FitSettings]] = FitSettings
    settings: FitSettings
    changes: ClassVar[Changes] = {}
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _model: MegModel | None = None
    _bytes = 0

    @classmethod
    def default_settings(cls) -> FitSettings:
        return cls.changed(FitSettings())

    @classmethod
    def changed(cls, settings: FitSettings) -> FitSettings:
        """These settings with the changes of this method."""
        parts = {part: replace(getattr(settings, part), **values) for part, values in cls.changes.items()}
        return replace(settings, **parts)

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


class Collected(Meg):
    """The collected neurons, looked up: the generator has learned nothing."""

    name: ClassVar[str] = "meg-collected"
    changes: ClassVar[Changes] = {"generator": {"min_steps": 1, "passes": 0}}


class QueryAlone(Meg):
    """The generator's condition is the query's vector alone, as in the paper; nothing of the nearest edit's."""

    name: ClassVar[str] = "meg-query-alone"
    changes: ClassVar[Changes] = {"generator": {"nearest_edit_share": 0.0}}


class EditAlone(Meg):
    """The condition is the nearest edit's vector alone."""

    name: ClassVar[str] = "meg-edit-alone"
    changes: ClassVar[Changes] = {"generator": {"nearest_edit_share": 1.0}}


class Untrained(Meg):
    """The encoder is MiniLM as it was published."""

    name: ClassVar[str] = "meg-untrained-encoder"
    changes: ClassVar[Changes] = {"encoder": {"trained": False}}


class Unverified(Meg):
    """No verifier: entropy and similarity decide."""

    name: ClassVar[str] = "meg-combined"
    changes: ClassVar[Changes] = {"router": {"rule": "combined"}}


class Similar(Meg):
    """Neither verifier nor familiarity network: the similarity to the nearest edit decides."""

    name: ClassVar[str] = "meg-similarity"
    changes: ClassVar[Changes] = {"router": {"rule": "similarity"}}


class Familiar(Meg):
    """The paper's rule: the familiarity network's entropy alone decides."""

    name: ClassVar[str] = "meg-entropy"
    changes: ClassVar[Changes] = {"router": {"rule": "entropy"}}
