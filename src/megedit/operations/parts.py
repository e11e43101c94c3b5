"""Where an operation has its adapter and base model from: loaded from their places, or those of a model in use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, load_adapter
from megedit.lm.twin import twin
from megedit.model import MegModel
from megedit.runtime.progress import Stages


@dataclass(frozen=True)
class Parts:
    """base: where the base model is now, if it was moved. model: the edited model in use, whose parts are taken."""

    base: str | None
    dtype: torch.dtype | None
    device: str | torch.device
    stages: Stages
    model: MegModel | None = None

    @classmethod
    def of(
        cls,
        base: str | None,
        dtype: torch.dtype | None,
        device: str | torch.device,
        stages: Stages | None,
        model: MegModel | None,
    ) -> Parts:
        """With a model in use, its device and number format in place of those given."""
        if model is not None:
            dtype, device = model.adapter.encoder.compute_dtype, model.device
        return cls(base, dtype, device, stages or Stages(), model)

    def adapter(self, folder: Path) -> Adapter:
        """The adapter as its folder is now."""
        with self.stages.stage("Loading the adapter"):
            known = self.model.adapter if self.model is not None else None
            return load_adapter(folder, self.device, dtype=self.dtype, known=known)

    def base_model(self, adapter: Adapter) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model of an adapter, and its tokenizer."""
        if self.model is not None:
            return twin(self.model.base), self.model.tokenizer  # the model itself goes on answering
        with self.stages.stage("Loading the base model"):
            return adapter.load_base(self.base, self.dtype, self.device)
