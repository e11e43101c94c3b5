"""Files that are written whole or not at all, and that everyone may read whom the user's umask lets; their sha256."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from megedit.errors import MegError


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text, as `replacing` does. errors: as for `str.encode`."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors)


def write_output(path: Path, text: str) -> None:
    """Write a file that the user asked for, as `write_whole`. Raises MegError when that fails."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise MegError(f"{path} could not be written: {error}.") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object that the user asked for, as `write_output`."""
    write_output(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which takes its place when all went well and vanishes otherwise.

    Its name is its own, so that several processes may write the same file: one of them is last. Its mode is what the
    umask makes of a new file, whoever writes it (safetensors gives its files to the user alone), and its bytes are on
    the disk before it takes its place.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    new = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(new).st_mode & 0o777
    os.close(new)
    try:
        yield partial
        partial.chmod(mode)
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows opens no folders
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
