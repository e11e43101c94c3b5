"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text, as `replacing` does. errors: as for `str.encode`."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which takes its place when all went well and vanishes otherwise.

    Several may be written at once, by threads or processes: the last that ends stays. It gets the mode that the umask
    gives to new files, whatever its writer made of it, and is on the disk before it takes the place.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors gives its files to the owner alone
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
