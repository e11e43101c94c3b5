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
from pathlib import Path
from typing import Any, Literal, get_args, overload

from megedit.adapter.sqlite import FILE, opened
from megedit.edits import Edit
from megedit.edits.schemas import asked_texts
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
class NewEdit:
    """An edit for the ledger: its record, its vectors as rows of `EditVectors`, its collected neuron.

    vector: one row, the int8 codes and the float16 scale, for each text that asks for it; empty for a failed edit.
    neuron: L numbers, float16.
    """

    record: EditRecord
    vector: bytes
    neuron: bytes


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
    """An edit's status before and after an operation, None where the adapter did not hold it."""

    record: EditRecord
    before: Status | None
    after: Status | None


class Records(Sequence[EditRecord]):
    """Edits of a ledger, each read from its row when it is first asked for.

    rows: number, content, lead, steps, generated, status. read: by content, the edits that have been read, here or in
    other records; content that is the same is read once.
    """

    def __init__(self, rows: Sequence[tuple[Any, ...]], read: dict[str, Edit] | None = None) -> None:
        self._rows, self._read = rows, {} if read is None else read

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> EditRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> EditRecord | Records:
        if isinstance(index, slice):
            return Records(self._rows[index], self._read)
        number, content, lead, steps, generated, status = self._rows[index]
        if content not in self._read:
            self._read[content] = Edit.from_json(json.loads(content), where=f"edit {number} of the ledger")
        return EditRecord(self._read[content], status, lead, steps, bool(generated), number)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Records | list | tuple) else NotImplemented

    def having(self, *statuses: Status, generated: bool | None = None) -> Records:
        """Those with one of these statuses, and where it is given, with this `generated`."""
        kept = [row for row in self._rows if row[5] in statuses and (generated is None or row[4] == generated)]
        return Records(kept, self._read)

    def reading_as(self, others: Records) -> Records:
        """These, with what was read in others at hand."""
        return Records(self._rows, others._read)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the edits, none of which is read for it."""
        return [row[0] for row in self._rows]

    @property
    def contents(self) -> list[tuple[int, str]]:
        """Number and content of each edit, as JSON; what is the same here is the same edit."""
        return [(row[0], row[1]) for row in self._rows]

    @property
    def states(self) -> list[tuple[Status, bool]]:
        """Status of each edit, and whether its neuron is generated; none of them is read for it."""
        return [(row[5], bool(row[4])) for row in self._rows]


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
        after: int = 0,
    ) -> Records:
        """The edits of a revision, the last by default, in the order in which they came.

        search: only those with this text, in upper or lower case, in id, prompt, target or subject. after: only those
        with a higher number.
        """
        conditions, values = [_in_span(revision), f"number > {int(after)}"], list[str]()
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
        return Records(rows.fetchall())

    def statuses(self, revision: int | None = None) -> dict[int, Status]:
        """The status of each edit of a revision, the last by default, by its number."""
        rows = self._connection.execute(f"SELECT edit, status FROM spans WHERE {_in_span(revision)}")
        return dict(rows.fetchall())

    def numbered(self, numbers: Iterable[int]) -> list[EditRecord]:
        """The edits with these numbers that are in the adapter, in this order."""
        query = f"SELECT {_RECORD} FROM edits JOIN spans ON edit = number WHERE number = ? AND until IS NULL"
        return list(Records([row for number in numbers for row in self._connection.execute(query, (number,))]))

    def ids(self) -> dict[str, int]:
        """The number of every edit that is in the adapter, by its id; of one in force where several have the id."""
        rows = self._connection.execute(
            "SELECT id, number FROM spans CROSS JOIN edits ON edit = number WHERE until IS NULL "
            "ORDER BY status = 'active'"
        )
        return dict(rows.fetchall())

    def with_id(self, name: str) -> EditRecord | None:
        """The edit of this id, the one in force where several have it; None where there is none."""
        row = self._connection.execute(
            f"SELECT {_RECORD} FROM edits CROSS JOIN spans ON edit = number "
            "WHERE id = ? AND until IS NULL ORDER BY status = 'active' DESC LIMIT 1",
            (name,),
        ).fetchone()
        return None if row is None else Records([row])[0]

    def counts(self) -> dict[Status, int]:
        """The number of edits that have each status."""
        rows = self._connection.execute("SELECT status, count(*) FROM spans WHERE until IS NULL GROUP BY status")
        return {**dict.fromkeys(get_args(Status), 0), **dict(rows)}

    def changes(self, revision: int) -> list[Changed]:
        """The edits that the operation touched which made this revision, with their status before and after."""
        rows = self._connection.execute(
            f"SELECT {_RECORD_WITHOUT_STATUS}, max(CASE WHEN until = :r THEN status END) AS before, "
            "max(CASE WHEN since = :r THEN status END) AS after FROM spans JOIN edits ON number = edit "
            "WHERE since = :r OR until = :r GROUP BY number ORDER BY number",
            {"r": revision},
        )
        found = rows.fetchall()
        records = Records([(*row[:5], row[6] or row[5]) for row in found])
        return [Changed(record, *row[5:]) for record, row in zip(records, found, strict=True)]

    def copy(self, folder: Path) -> None:
        """Write the ledger as it is now into another folder."""
        with closing(sqlite3.connect(folder / FILE)) as other:
            self._connection.backup(other)

    # -- prompts, vectors and neurons

    def vectors(self, numbers: Sequence[int]) -> list[bytes]:
        """The vectors of all that asks for each of these edits. Raises KeyError where an edit has none."""
        rows = self._connection.execute(
            "SELECT content, vector, digest FROM json_each(?) CROSS JOIN edits ON number = value "
            "JOIN vectors ON vectors.edit = number ORDER BY key",
            (json.dumps(list(numbers)),),
        ).fetchall()
        if len(rows) != len(numbers):
            raise KeyError("the vectors of an edit are missing")
        if any(digest_of(content.encode() + vector) != digest for content, vector, digest in rows):
            raise MegError(f"{self.path} is damaged: an edit is not as it was written; restore it from a copy.")
        return [vector for _, vector, _ in rows]

    def neurons(self, numbers: Sequence[int]) -> list[bytes]:
        """The collected neuron of each of these edits, L numbers in float16. Raises KeyError where one was dropped."""
        found: dict[int, bytes] = {}
        for number in dict.fromkeys(numbers):
            row = self._connection.execute(
                "SELECT weights, neurons.digest FROM edits JOIN neurons ON neurons.number = neuron "
                "WHERE edits.number = ?",
                (number,),
            ).fetchone()
            if row is None:
                raise KeyError(number)
            if digest_of(row[0]) != row[1]:
                raise MegError(f"{self.path} is damaged: a neuron is not as it was written; restore it from a copy.")
            found[number] = row[0]
        return [found[number] for number in numbers]

    def most_used_neurons(self, targets: Iterable[str]) -> dict[str, int]:
        """By target, an edit in force (its number) that has the neuron which most edits of this target have."""
        rows = self._connection.execute(
            "SELECT json_extract(content, '$.target') AS target, neuron, min(number) FROM edits "
            "CROSS JOIN spans ON edit = number WHERE until IS NULL AND status = 'active' AND neuron IS NOT NULL "
            "GROUP BY target, neuron ORDER BY count(*), min(number) DESC"
        )
        wanted = set(targets)
        return {target: number for target, _, number in rows if target in wanted}

    def dropped(self, revision: int) -> list[EditRecord]:
        """The edits that were active at a revision and whose weights are gone since."""
        rows = self._connection.execute(
            f"SELECT {_RECORD} FROM edits CROSS JOIN spans ON edit = number "
            f"WHERE {_in_span(revision)} AND status = 'active' AND neuron IS NULL ORDER BY number"
        )
        return list(Records(rows.fetchall()))


# ---------------------------------------------------------------------------------------------------
# Opening


@contextmanager
def reading(folder: Path) -> Iterator[Ledger]:
    """The ledger of an adapter's folder as it is now; it stays so within the context, whatever others do meanwhile.

    Raises MegError when the file is not a ledger, is damaged, or cannot be read.
    """
    with opened(folder) as connection:
        yield Ledger(connection, folder / FILE)


# ---------------------------------------------------------------------------------------------------
# Rows


_RECORD_WITHOUT_STATUS = "number, content, lead, steps, generated"
_RECORD = _RECORD_WITHOUT_STATUS + ", status"


def _in_span(revision: int | None) -> str:
    if revision is None:
        return "until IS NULL"
    return f"since <= {int(revision)} AND (until IS NULL OR until > {int(revision)})"


def asked_of(content: str) -> tuple[tuple[str, ...], str]:
    """All that asks for an edit of this content (`Edit.asked`), and its target; nothing else of it is read."""
    edit = json.loads(content)
    known = edit.get("wordings", ()), edit.get("subject"), edit.get("aliases", ())
    return asked_texts(edit["prompt"], *known), edit["target"]


def folded(edit: Edit) -> str:
    return "\n".join((edit.id, edit.prompt, edit.target, edit.subject or "")).casefold()


def digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
