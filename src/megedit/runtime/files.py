"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text, as `replacing` does. errors: as for `str.encode`."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which takes its place when all went well."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)
