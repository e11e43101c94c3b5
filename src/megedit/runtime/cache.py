"""The cache folder, and hashes of large files that are computed once for as long as a file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from megedit.runtime.files import sha256_of, write_whole

LARGE = 4 << 20  # bytes from which looking a hash up is quicker than computing it
SETTLED = 2.0  # seconds after which a further change to a file is sure to show in its times


def cache_folder() -> Path:
    """MegEdit's cache folder: $MEGEDIT_CACHE, or `megedit` in the user's cache folder."""
    if chosen := os.environ.get("MEGEDIT_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "megedit"


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    That of a large one is remembered with its size, place and times, and taken as long as none of these has changed.
    """
    status = path.stat()
    if status.st_size < LARGE:
        return sha256_of(path)
    stamp = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text("utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    sha256 = sha256_of(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED:
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps({"file": str(path.resolve()), "stamp": stamp, "sha256": sha256}), "replace")
    return sha256
