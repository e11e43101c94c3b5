"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text under a temporary name beside `path`, then rename it. errors: as for `str.encode`."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8", errors)
    os.replace(partial, path)
