"""The journal of an evaluation: finished batches on disk, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megedit.evaluate.result import Verdict


class Journal:
    """Finished batches, one JSON line each; a file that another evaluation wrote is started anew."""

    def __init__(self, path: Path | None, key: Any) -> None:
        self._path, self._key = path, hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self._done: dict[int, list[dict[str, Any]]] = {}

    def __enter__(self) -> Journal:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text("utf-8").split("\n") if self._path.exists() else []
        if lines and lines[0] == self._key:
            for line in lines[1:-1]:  # what stands behind the last line break was cut off
                number, values = json.loads(line)
                self._done[number] = values
            self._path.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
        else:
            self._path.write_text(self._key + "\n", "utf-8")
        return self

    def get(self, number: int) -> list[dict[str, Any]] | None:
        """The verdicts of a finished batch."""
        return self._done.get(number)

    def add(self, number: int, verdicts: Sequence[Verdict]) -> None:
        """Keep a batch that was just finished."""
        if self._path is not None:
            values = [verdict.to_json() for verdict in verdicts]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, values]) + "\n")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._path is not None and error is None:
            self._path.unlink(missing_ok=True)
