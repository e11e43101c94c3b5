"""Changing a ledger: one operation, which makes the next revision, as a whole or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megedit.adapter.ledger import Kind, Ledger, NewEdit, Status, digest_of, folded
from megedit.adapter.sqlite import FILE, Busy, commit, opened


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

    def add(self, edits: Iterable[NewEdit]) -> None:
        """New edits, each with the status of its record."""
        for new in edits:
            record, neuron = new.record, digest_of(new.neuron)
            self._connection.execute(
                "INSERT INTO neurons (digest, weights) VALUES (?, ?) ON CONFLICT DO NOTHING", (neuron, new.neuron)
            )
            content = json.dumps(record.edit.to_json(), ensure_ascii=False)
            number = self._connection.execute(
                "INSERT INTO edits (id, content, folded, lead, steps, neuron, generated) "
                "VALUES (?, ?, ?, ?, ?, (SELECT number FROM neurons WHERE digest = ?), ?)",
                (
                    record.edit.id,
                    content,
                    folded(record.edit),
                    record.lead,
                    record.steps,
                    neuron,
                    record.generated,
                ),
            ).lastrowid
            digest = digest_of(content.encode() + new.vector)
            self._connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (number, new.vector, digest))
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
        """True if there are weights of edits that are not active."""
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


@contextmanager
def settled(folder: Path) -> Iterator[Ledger]:
    """The ledger after the last change, with no other process changing it within the context, unless one takes long."""
    with ExitStack() as context:
        try:
            connection = context.enter_context(opened(folder, to_write=True))
        except Busy:  # that process settles what comes of its own change
            connection = context.enter_context(opened(folder))
        yield Ledger(connection, folder / FILE)
