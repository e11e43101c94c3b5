"""The folder of an adapter: data that turns a base model into the edited one. Its format: docs/adapter-format.md.

    meg_config.json       base model, layer, template, settings, calibration, sha256 of what never changes
    ledger.db             every edit, its vector and collected neuron, and what was done when (ledger.py)
    model-NNNN.safetensors  familiarity network and weight generator as of revision NNNN (eight bits a number)
    fit.log               when each stage of the fit began and ended, and its warnings
    seen.safetensors      keys of the texts that encoder and router were tuned on, to refuse evaluating on them
    verifier.safetensors  low-rank changes to MiniLM (eight bits a number): what reads a query beside an edit
    second_verifier.safetensors  the same of another training, for the edit that the first is surest of
    encoder.safetensors   low-rank changes to MiniLM: the text encoder, where it is the shipped one
    encoder/              else: the text encoder (eight bits a number), its configuration and tokenizer
    README.md             model card

Nothing in it is code and nothing is unpickled. A folder is written under a temporary name and renamed; after that only
the ledger changes, and the model when edits are consolidated.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from megedit.adapter.card import CARD, write_card
from megedit.adapter.change import settled
from megedit.adapter.config import CONFIG, FORMAT_VERSION, OLDEST_VERSION, AdapterConfig
from megedit.adapter.ledger import reading
from megedit.adapter.sqlite import FILE as LEDGER_FILE
from megedit.errors import MegError
from megedit.runtime.cache import remembered_sha256
from megedit.runtime.files import sha256_of
from megedit.runtime.shipped import ENCODER, SECOND_VERIFIER, VERIFIER

logger = logging.getLogger("megedit")

LOG = "fit.log"
_ENCODER = ("encoder/config.json", "encoder/weights.safetensors")
_HUB_FILES = (CONFIG, LEDGER_FILE, LOG, "seen.safetensors", CARD, VERIFIER, SECOND_VERIFIER, ENCODER, "encoder/*")


def config_files(folder: Path) -> list[str]:
    """The files of an adapter that never change."""
    return list(json.loads((folder / CONFIG).read_text("utf-8"))["files"])


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter: one here, or the local copy of one on the Hugging Face Hub."""
    path = os.path.expanduser(name)
    if str(name) and os.path.exists(path):  # unlike Path's own method, this one never raises
        return Path(path).resolve()
    from megedit.lm.places import resolve_copy  # here, since the library behind it takes long to import

    folder = resolve_copy(str(name), _HUB_FILES)
    with reading(folder) as ledger:
        model = ledger.model[0]
    if not (folder / model).is_file():  # of the model files of all revisions, the one in use
        folder = resolve_copy(str(name), (*_HUB_FILES, model))
    return folder


def read_config(folder: Path, *, verify: bool = True) -> AdapterConfig:
    """The configuration of an adapter folder, after checking, with `verify`, that every file is as it was written."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        version = int(values["format_version"])
        if version > FORMAT_VERSION:
            raise MegError(
                f"The adapter {folder} has format {version}, this version of MegEdit reads up to {FORMAT_VERSION}; "
                "upgrade MegEdit."
            )
        if version < OLDEST_VERSION:
            raise MegError(
                f"The adapter {folder} has format {version}, which this version of MegEdit no longer reads; "
                "fit it again."
            )
        needed = ["seen.safetensors", *(() if ENCODER in values["files"] else _ENCODER)]
        if unlisted := [name for name in needed if name not in values["files"]]:
            raise ValueError(f"{unlisted[0]} is not listed")
        for name, expected in values["files"].items() if verify else ():
            if remembered_sha256(inside(folder, name)) != expected:
                raise damaged(folder, name)
        return AdapterConfig.from_json(values)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(str(error.filename)).name
        why = "is not an adapter" if missing == CONFIG else "is damaged"
        raise MegError(f"{folder} {why}: {missing} is missing.") from error
    except PermissionError as error:
        raise unreadable(folder, Path(str(error.filename)).name) from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MegError(f"The adapter {folder} is damaged: {CONFIG} cannot be read ({error}).") from error


def is_adapter(folder: Path) -> bool:
    """True if the folder holds an adapter."""
    return (folder / CONFIG).is_file()


@contextmanager
def replacing_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when all went well and vanishes otherwise."""
    check_replaceable(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    except (OSError, SafetensorError) as error:
        raise MegError(f"{folder} could not be written ({error}); what was there before is untouched.") from error


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raise MegError unless `folder` is free, empty, or an adapter that may be overwritten."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_adapter(folder):
        raise MegError(f"{folder} is already there and is not an adapter; choose another folder.")
    if not overwrite:
        raise MegError(f"{folder} already holds an adapter; choose another folder or allow overwriting it.")


def write_config(folder: Path, config: AdapterConfig) -> None:
    """Write the configuration of an adapter, with the hashes of all files that are in the folder already."""
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}
    text = json.dumps({**config.to_json(), "files": files}, indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def copy_adapter(source: Path, folder: str | Path, overwrite: bool = False) -> None:
    """Copy an adapter's folder as it is now. An adapter that is already there is only replaced with `overwrite`.

    Raises MegError when the folder is there and is not an adapter or may not be replaced, or the disk is full.
    """
    config = read_config(source)
    with replacing_folder(Path(folder), overwrite) as partial, reading(source) as ledger:
        for name in (CONFIG, *config_files(source), ledger.model[0]):
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(inside(source, name), partial / name)
        ledger.copy(partial)
        write_card(partial, config, ledger)


def describe(folder: Path) -> None:
    """Write the model card of an adapter anew; where that fails, only warn: the change that it tells of is made."""
    try:
        with settled(folder) as ledger:
            write_card(folder, read_config(folder, verify=False), ledger)
    except (OSError, MegError) as error:
        logger.warning("%s could not be written anew (%s); all else is as it should be.", folder / CARD, error)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def inside(folder: Path, name: str) -> Path:
    """The file of that name, if it is in the folder; the Hub's cache keeps the files of a snapshot in `blobs`."""
    folder = folder.resolve()
    roots = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    path = folder / name
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise ValueError(f"{name} is outside the folder")
    return path


def unreadable(folder: Path, name: str) -> MegError:
    """The error of a file that the user may not read."""
    return MegError(f"The adapter {folder}: {name} cannot be read: you have no permission; ask its owner for it.")


def damaged(folder: Path, name: str) -> MegError:
    return MegError(
        f"The adapter {folder} is damaged: {name} is not as it was written; restore it from a copy or fit it again."
    )
