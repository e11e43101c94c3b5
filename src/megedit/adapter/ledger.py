"""The ledger: every edit an adapter holds or ever held, in revisions, in one SQLite file.

An operation makes the next revision and is one transaction: whoever reads sees all of it or nothing, and killed at any
moment it has not happened. An edit is in force, or has failed, or is removed, while a span with that status covers the
revision, so every earlier state can be read and brought back. Collected neurons are kept once each. The tables are
described in docs/adapter-format.md.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from megedit.adapter.sqlite import FILE, commit, opened
from megedit.edits.edit_set import Edit
from megedit.errors import MegError

Status = Literal["active", "failed", "removed"]
Kind = Literal["fit", "add", "update", "remove", "undo", "rollback", "consolidate"]


@dataclass(frozen=True)
class EditRecord:
    """An edit and what became of it.

    lead: smallest lead in logits of an answer token with the collected neuron. generated: whether the generated neuron
    gives the answer; where it does not, the collected one is used. A failed edit could not be collected, a removed one
    was taken back; the base model answers their queries. number: the edit's place in the ledger.
    """

    edit: Edit
    status: Status
    lead: float
    steps: int
    generated: bool
    number: int = 0


@dataclass(frozen=True)
class Entry:
    """A new edit for the ledger: its record, the vector of its query as a row of `EditVectors`, its collected neuron.

    neuron: float32 (L,), kept in half precision.
    """

    record: EditRecord
    vector: bytes
    neuron: Tensor


@dataclass(frozen=True)
class Operation:
    """A line of the log: what made a revision, when (UTC), from which file or ids, and what came of it."""

    revision: int
    time: str
    kind: Kind
    source: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Changed:
    """What an operation did to one edit: None where it did not hold the edit before, or does not after."""

    record: EditRecord
    before: Status | None
    after: Status | None


class Ledger:
    """Reading, within one transaction; `reading` and `changing` open it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self.path = connection, path

    # -- what is in force

    @property
    def revision(self) -> int:
        """The last revision; 0 in an empty ledger."""
        return int(self._connection.execute("SELECT coalesce(max(revision), 0) FROM operations").fetchone()[0])

    def operations(self) -> list[Operation]:
        """The log, oldest first."""
        query = "SELECT revision, time, kind, source, result FROM operations ORDER BY revision"
        return [
            Operation(revision, time, kind, source, json.loads(result))
            for revision, time, kind, source, result in self._connection.execute(query)
        ]

    @property
    def model(self) -> tuple[str, str]:
        """Name and sha256 of the file with familiarity network and generator."""
        query = "SELECT model, model_sha256 FROM operations ORDER BY revision DESC LIMIT 1"
        name, sha256 = self._connection.execute(query).fetchone()
        return str(name), str(sha256)

    def records(
        self,
        revision: int | None = None,
        *,
        status: Status | None = None,
        search: str | None = None,
        limit: int | None = None,
    ) -> list[EditRecord]:
        """The edits of a revision, the last by default, in the order in which they came.

        search: only those with this text, in upper or lower case, in id, prompt, target or subject.
        """
        conditions, values = [_in_span(revision)], list[str]()
        if status is not None:
            conditions.append("status = ?")
            values.append(status)
        if search:
            conditions.append("instr(folded, ?)")
            values.append(search.casefold())
        rows = self._connection.execute(
            f"SELECT {_RECORD} FROM edits CROSS JOIN spans ON edit = number WHERE {' AND '.join(conditions)} "
            f"ORDER BY number LIMIT {-1 if limit is None else int(limit)}",
            values,
        )
        return [_record(row) for row in rows]

    def counts(self) -> dict[Status, int]:
        """How many edits have each status."""
        rows = self._connection.execute("SELECT status, count(*) FROM spans WHERE until IS NULL GROUP BY status")
        return {**dict.fromkeys(get_args(Status), 0), **dict(rows)}

    def changes(self, revision: int) -> list[Changed]:
        """What the operation that made this revision did to each edit that it touched."""
        rows = self._connection.execute(
            f"SELECT {_RECORD_WITHOUT_STATUS}, max(CASE WHEN until = :r THEN status END) AS before, "
            "max(CASE WHEN since = :r THEN status END) AS after FROM spans JOIN edits ON number = edit "
            "WHERE since = :r OR until = :r GROUP BY number ORDER BY number",
            {"r": revision},
        )
        return [Changed(_record((*row[:5], row[6] or row[5])), row[5], row[6]) for row in rows]

    def copy(self, folder: Path) -> None:
        """Write the ledger as it is now into another folder."""
        with closing(sqlite3.connect(folder / FILE)) as other:
            self._connection.backup(other)

    # -- vectors and neurons

    def vectors(self) -> list[bytes]:
        """The vectors of the edits that the router knows, the active and the removed, in the order of `records`."""
        rows = self._connection.execute(
            "SELECT content, vector, digest FROM edits CROSS JOIN spans ON spans.edit = number "
            f"JOIN vectors ON vectors.edit = number WHERE {_in_span(None)} AND status != 'failed' ORDER BY number"
        ).fetchall()
        if any(_digest(content.encode() + vector) != digest for content, vector, digest in rows):
            raise MegError(f"{self.path} is damaged: an edit is not as it was written; restore it from a copy.")
        return [vector for _, vector, _ in rows]

    def neurons(self, numbers: Sequence[int]) -> Tensor:
        """Collected weights of edits: float32 (edits, L). Raises KeyError where they were dropped."""
        found: dict[int, Tensor] = {}
        for number in dict.fromkeys(numbers):
            row = self._connection.execute(
                "SELECT weights, neurons.digest FROM edits JOIN neurons ON neurons.number = neuron "
                "WHERE edits.number = ?",
                (number,),
            ).fetchone()
            if row is None:
                raise KeyError(number)
            if _digest(row[0]) != row[1]:
                raise MegError(f"{self.path} is damaged: a neuron is not as it was written; restore it from a copy.")
            found[number] = torch.frombuffer(bytearray(row[0]), dtype=torch.float16)
        return torch.stack([found[number] for number in numbers]).float() if numbers else torch.zeros(0, 0)

    def dropped(self, revision: int) -> list[EditRecord]:
        """The edits that were active at a revision and whose weights are gone since."""
        rows = self._connection.execute(
            f"SELECT {_RECORD} FROM edits CROSS JOIN spans ON edit = number "
            f"WHERE {_in_span(revision)} AND status = 'active' AND neuron IS NULL ORDER BY number"
        )
        return [_record(row) for row in rows]


class Change(Ledger):
    """Writing: one operation, which makes the next revision."""

    def __init__(self, connection: sqlite3.Connection, path: Path, kind: Kind, source: str) -> None:
        super().__init__(connection, path)
        self.next, self.cancelled = self.revision + 1, False
        model = self.model if self.next > 1 else ("", "")
        self._connection.execute(
            "INSERT INTO operations VALUES (?, ?, ?, ?, '{}', ?, ?)",
            (self.next, datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"), kind, source, *model),
        )

    def cancel(self) -> None:
        """Let the operation end as if it had never begun."""
        self.cancelled = True

    def add(self, entries: Iterable[Entry]) -> None:
        """New edits, each with the status of its record."""
        for entry in entries:
            record, weights = entry.record, entry.neuron.half().cpu().contiguous().numpy().tobytes()
            self._connection.execute(
                "INSERT INTO neurons (digest, weights) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (_digest(weights), weights),
            )
            content = json.dumps(record.edit.to_json(), ensure_ascii=False)
            number = self._connection.execute(
                "INSERT INTO edits (id, content, folded, lead, steps, neuron, generated) "
                "VALUES (?, ?, ?, ?, ?, (SELECT number FROM neurons WHERE digest = ?), ?)",
                (
                    record.edit.id,
                    content,
                    _folded(record.edit),
                    record.lead,
                    record.steps,
                    _digest(weights),
                    record.generated,
                ),
            ).lastrowid
            digest = _digest(content.encode() + entry.vector)
            self._connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (number, entry.vector, digest))
            self._connection.execute("INSERT INTO spans VALUES (?, ?, ?, NULL)", (number, record.status, self.next))

    def end(self, numbers: Iterable[int], become: Status | None = None) -> None:
        """End the present status of edits; from now on they have another one, or are not in the adapter."""
        for number in numbers:
            self._connection.execute("UPDATE spans SET until = ? WHERE edit = ? AND until IS NULL", (self.next, number))
            if become:
                self.begin([number], become)

    def begin(self, numbers: Iterable[int], status: Status) -> None:
        """Give edits that are not in the adapter a status again."""
        for number in numbers:
            self._connection.execute("INSERT INTO spans VALUES (?, ?, ?, NULL)", (number, status, self.next))

    def set_generated(self, numbers: Iterable[int], generated: bool) -> None:
        """Note whether the generator gives the answers of edits."""
        rows = [(generated, number) for number in numbers]
        self._connection.executemany("UPDATE edits SET generated = ? WHERE number = ?", rows)

    def droppable(self) -> bool:
        """Whether there are weights of edits that are not active."""
        query = (
            "SELECT 1 FROM edits WHERE neuron IS NOT NULL AND NOT EXISTS "
            "(SELECT 1 FROM spans WHERE edit = number AND until IS NULL AND status = 'active') LIMIT 1"
        )
        return self._connection.execute(query).fetchone() is not None

    def drop_weights(self) -> None:
        """Drop for good the collected neurons that no active edit has."""
        self._connection.execute(
            "UPDATE edits SET neuron = NULL WHERE number NOT IN "
            "(SELECT edit FROM spans WHERE until IS NULL AND status = 'active')"
        )
        self._connection.execute(
            "DELETE FROM neurons WHERE number NOT IN (SELECT neuron FROM edits WHERE neuron IS NOT NULL)"
        )

    def set_model(self, name: str, sha256: str) -> None:
        """The file with familiarity network and generator from now on."""
        self._connection.execute(
            "UPDATE operations SET model = ?, model_sha256 = ? WHERE revision = ?", (name, sha256, self.next)
        )

    def note(self, **result: Any) -> None:
        """Write down what came of the operation."""
        self._connection.execute(
            "UPDATE operations SET result = ? WHERE revision = ?",
            (json.dumps(result, ensure_ascii=False), self.next),
        )


# ---------------------------------------------------------------------------------------------------
# Opening


@contextmanager
def reading(folder: Path) -> Iterator[Ledger]:
    """The ledger of an adapter's folder as it is now; it stays so within the context, whatever others do meanwhile.

    Raises MegError when the file is not a ledger, is damaged, or cannot be read.
    """
    with opened(folder) as connection:
        yield Ledger(connection, folder / FILE)


@contextmanager
def changing(folder: Path, kind: Kind, source: str = "") -> Iterator[Change]:
    """One operation, written when the context ends without an error, and undone otherwise.

    As long as it lasts no other process can change the ledger; all can read it.
    Raises MegError when another process is changing it, or it cannot be written.
    """
    with opened(folder, to_write=True) as connection:
        yield (change := Change(connection, folder / FILE, kind, source))
        if not change.cancelled:
            commit(connection)


# ---------------------------------------------------------------------------------------------------
# Rows


_RECORD_WITHOUT_STATUS = "number, content, lead, steps, generated"
_RECORD = _RECORD_WITHOUT_STATUS + ", status"


def _in_span(revision: int | None) -> str:
    if revision is None:
        return "until IS NULL"
    return f"since <= {int(revision)} AND (until IS NULL OR until > {int(revision)})"


def _record(row: Sequence[Any]) -> EditRecord:
    number, content, lead, steps, generated, status = row
    edit = Edit.from_json(json.loads(content), where=f"edit {number} of the ledger")
    return EditRecord(edit, status, lead, steps, bool(generated), number)


def _folded(edit: Edit) -> str:
    return "\n".join((edit.id, edit.prompt, edit.target, edit.subject or "")).casefold()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
