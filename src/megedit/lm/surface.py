"""The part of a Hugging Face model's surface that an edited model has from its base model as it is."""

from __future__ import annotations

from typing import Any, NoReturn, Self, cast

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from megedit.errors import MegError

# `pipeline("text-generation", ...)` looks up here whether the class of a model can generate text
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["megedit"] = "MegModel"

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


class HuggingFaceSurface:
    """Configuration, device and number format of the base model, and moving it."""

    base: PreTrainedModel
    main_input_name = "input_ids"
    input_modalities = output_modalities = ("text",)

    @property
    def config(self) -> PretrainedConfig:
        """The base model's configuration."""
        return self.base.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that `generate` follows where none are given; those of the base model."""
        return self.base.generation_config

    @property
    def name_or_path(self) -> str:
        return str(self.base.name_or_path)

    @property
    def device(self) -> torch.device:
        """Where the inputs of `generate` go."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The base model's number format."""
        return self.base.dtype

    @property
    def training(self) -> bool:
        return self.base.training

    def can_generate(self) -> bool:
        return True

    def eval(self) -> Self:
        """Do nothing: an edited model is in evaluation mode from the start."""
        self.base.eval()
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the base model, as `torch.nn.Module.to` does, and the adapter to its device.

        A number format is for the base model alone.
        """
        cast(Any, self.base).to(*args, **kwargs)
        self._moved()
        return self

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        return self.to("cuda" if device is None else torch.device(device))

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        return self.to(torch.float32)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An edited model is not pickled or copied: its base model and its adapter are folders; load them with "
            "MegModel.from_pretrained where they are needed, and save the adapter with save_pretrained."
        )

    def _moved(self) -> None:
        """Called when the base model has another device or number format."""


def number_format(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A number format from its name, as Hugging Face takes it; None for `auto`."""
    if not isinstance(dtype, str):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise MegError(f"{dtype!r} is not a number format; choose bfloat16, float16, float32 or auto.")
    return found


def one_device(device_map: Any) -> str | torch.device:
    """The device that a device map of Hugging Face stands for. Raises MegError for one that names parts of a model."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if isinstance(device_map, dict):
        raise MegError(
            "A device map of several parts cannot be given here; say device_map='auto', or load the base model with "
            "it yourself and call MegModel(base, tokenizer, adapter)."
        )
    if device_map in _SPREAD:
        return "auto"
    return torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)
