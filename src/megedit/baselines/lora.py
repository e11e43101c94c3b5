"""LoRA on the attention's and FFN's matrices, trained on the edits as on any other data.

Source: Hu et al. 2022, LoRA (arXiv 2106.09685): W + (alpha / r) B A with a low rank r; by the `peft` library.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from megedit.baselines.ft import FineTuningSettings, train
from megedit.baselines.method import Method
from megedit.edits import Edit
from megedit.errors import needs
from megedit.runtime.callbacks import Advance, no_progress


@dataclass(frozen=True)
class LoraSettings(FineTuningSettings):
    """The low-rank matrices and their training."""

    rank: Annotated[int, "r"] = 8
    alpha: Annotated[int, "by which r is divided for the scale"] = 32
    lr: Annotated[float, "AdamW learning rate"] = 5e-3


class Lora(Method):
    """Low-rank changes of all linear maps."""

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "arXiv 2106.09685"
    settings_type: ClassVar[type[Any]] = LoraSettings
    settings: LoraSettings
    _wrapped: Any = None
    _bytes = 0

    def edit(self, edits: Sequence[Edit], advance: Advance = no_progress) -> None:
        needs("peft", "bench", "the method lora")
        from peft import LoraConfig, get_peft_model

        settings = self.settings
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's own call into transformers
            self._wrapped = get_peft_model(self.base.model, config)
        parameters = [parameter for parameter in self.base.model.parameters() if parameter.requires_grad]
        self._bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        train(self.base, self.base.examples(edits), parameters, 0, settings, self.seed, advance)

    def restore(self) -> None:
        if self._wrapped is not None:
            self._wrapped.unload()
            self._wrapped = None

    @property
    def stored_bytes(self) -> int:
        return self._bytes if self._wrapped is not None else 0
