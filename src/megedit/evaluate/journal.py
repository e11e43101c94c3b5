"""The journal of an evaluation: finished batches on disk, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from megedit.evaluate.protocols import Case
from megedit.evaluate.result import Verdict

logger = logging.getLogger("megedit")


class Journal:
    """The finished batches of one evaluation, one JSON line each, in a file of its own.

    The file is named by all that decides the verdicts. It belongs to one process at a time: where the same evaluation
    is running already, this one keeps no journal. seconds: time that was spent on the batches found in the file.
    """

    def __init__(self, folder: Path | None, key: Any, batches: Sequence[Sequence[Case]]) -> None:
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self._path = folder / f"{digest[:32]}.jsonl" if folder else None
        self._batches = batches
        self._lock: FileLock | None = None
        self._done: dict[int, list[Verdict]] = {}
        self.seconds = 0.0

    def __enter__(self) -> Journal:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._path.with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            logger.warning("The same evaluation is running already; this one begins anew and cannot be resumed")
            self._path = None
            return self
        self._lock = lock
        if self._path.exists():
            self._read(self._path)
        return self

    def get(self, number: int) -> list[Verdict] | None:
        """The verdicts of a batch that was finished before."""
        return self._done.get(number)

    def add(self, number: int, seconds: float, verdicts: Sequence[Verdict]) -> None:
        """Keep a batch that was just finished."""
        if self._path is not None:
            line = {"batch": number, "seconds": seconds, "verdicts": [verdict.to_json() for verdict in verdicts]}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._path is not None and error is None:
            self._path.unlink(missing_ok=True)
        if self._lock is not None:
            with suppress(OSError):  # it may be held open elsewhere
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _read(self, path: Path) -> None:
        """Take what is in the file, and leave only that in it: the last line may have been cut off."""
        *lines, rest = path.read_text("utf-8", errors="replace").split("\n")
        kept = [line for line in lines if self._take(line)]
        if len(kept) < len(lines):
            unread = len(lines) - len(kept)
            logger.warning("%d lines of %s cannot be used; their questions are asked again", unread, path)
        if rest or len(kept) < len(lines):
            path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def _take(self, line: str) -> bool:
        """Take the batch of a line; False where the line is none of this evaluation's."""
        try:
            values = json.loads(line)
            number, seconds = values["batch"], float(values["seconds"])
            rows = list(zip(self._batches[number], values["verdicts"], strict=True))
            if any((row["edit"], row["kind"], row["query"]) != (c.edit, c.kind, c.query) for c, row in rows):
                return False
            self._done[number] = [Verdict.from_json(case, row) for case, row in rows]
        except (ValueError, LookupError, TypeError):
            return False
        self.seconds += seconds
        return True
