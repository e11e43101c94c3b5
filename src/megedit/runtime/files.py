"""Files that are written whole or not at all, and that everyone may read whom the user's umask lets; their sha256."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text, as `replacing` does. errors: as for `str.encode`."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors)


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
