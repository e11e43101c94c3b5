"""Edits of an adapter removed, and earlier states brought back.

Each operation locks the adapter's ledger for other writers, does its work, and writes one revision: all of it or
nothing. No model is loaded. A removed edit stays in the router, as a place whose queries are for the base model.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megedit.adapter.change import Change, changing
from megedit.adapter.folder import describe
from megedit.adapter.ledger import Changed, EditRecord, Ledger, reading
from megedit.edits import Edit, normalise_query
from megedit.errors import MegError


class UnknownEdit(MegError):
    """There is no edit of that id."""


@dataclass(frozen=True)
class Outcome:
    """Revision that an operation made, or the last one where there was nothing to do, and its changes.

    result: counts, as they stand in the log.
    skipped: new edits that were left out, because the adapter has them already or a conflict was resolved that way.
    failed: those for which no neuron was found; where one was to replace another edit, that one stays.
    reasons: why an edit failed, by its id, where the model could never give its target.
    """

    revision: int
    changes: tuple[Changed, ...]
    skipped: tuple[Edit, ...] = ()
    failed: tuple[Edit, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def remove(folder: str | Path, ids: Sequence[str]) -> Outcome:
    """Take edits back, at once: their queries and rephrases are for the base model, all other edits stay as they are.

    Raises MegError when an id is not in the adapter, or was removed already.
    """
    with changing(Path(folder), "remove", ", ".join(ids)) as change:
        records = find(change, ids)
        if gone := [record.edit.id for record in records if record.status == "removed"]:
            raise MegError(f"Removed already: {', '.join(gone)}; nothing was changed.")
        change.end([record.number for record in records if record.status == "active"], "removed")
        change.end([record.number for record in records if record.status == "failed"])
        change.note(removed=len(records))
        outcome = Outcome(change.next, tuple(change.changes(change.next)))
    describe(Path(folder))
    return outcome


def undo(folder: str | Path) -> Outcome:
    """Take the last operation back; done twice, it is done again. Raises MegError as `rollback`."""
    with reading(Path(folder)) as ledger:
        last = ledger.operations()[-1]
    if last.kind == "fit":
        raise MegError("There is nothing to undo: the adapter is as it was fitted.")
    if last.kind == "consolidate":
        raise MegError(
            "The last operation consolidated the adapter, which changed no edit; "
            "to go back to edits of before, roll back to an earlier revision (meg log lists them)."
        )
    return _restore(Path(folder), "undo", last.revision - 1, last.revision)


def rollback(folder: str | Path, revision: int) -> Outcome:
    """Bring back the edits that were in force at a revision.

    Raises MegError when there is no such revision, or weights that it needs were dropped when the adapter was
    consolidated.
    """
    return _restore(Path(folder), "rollback", revision)


def _restore(folder: Path, kind: Literal["undo", "rollback"], revision: int, last: int | None = None) -> Outcome:
    with changing(folder, kind, f"revision {revision}") as change:
        if last is not None and change.next != last + 1:
            raise MegError(f"Another process has just changed {folder}; look at its log and try again.")
        if not 1 <= revision < change.next:
            raise MegError(f"There is no revision {revision}; this adapter has 1 to {change.next - 1}.")
        if dropped := change.dropped(revision):
            names = ", ".join(record.edit.id for record in dropped[:10])
            raise MegError(
                f"The weights of {len(dropped)} edits of revision {revision} were dropped when the adapter was "
                f"consolidated ({names}{', ...' if len(dropped) > 10 else ''}); add them again instead."
            )
        _back_to(change, revision)
        changes = tuple(change.changes(change.next))
        change.note(restored=revision, changed=len(changes))
        if not changes:
            change.cancel()
        outcome = Outcome(change.next if changes else change.next - 1, changes)
    describe(folder)
    return outcome


def _back_to(change: Change, revision: int) -> None:
    """Give every edit the status that it had.

    One that was not there yet leaves; or, where the generator and the familiarity network have learned it and its query
    is not edited otherwise, becomes a removed one.
    """
    now, then = change.statuses(), change.statuses(revision)
    leaving = change.numbered(now.keys() - then.keys())
    active = change.records(revision, status="active") if any(record.generated for record in leaving) else []
    asked = {normalise_query(record.edit.prompt) for record in active}
    for record in leaving:
        learned = record.generated and record.status != "failed"
        stays = learned and normalise_query(record.edit.prompt) not in asked
        if not (stays and record.status == "removed"):
            change.end([record.number], "removed" if stays else None)
    for number, status in then.items():
        if number not in now:
            change.begin([number], status)
        elif now[number] != status:
            change.end([number], status)


def find(ledger: Ledger, ids: Sequence[str]) -> list[EditRecord]:
    """The edits with these ids, as they are written or up to spaces and the encoding of accents.

    Raises UnknownEdit, with ids that are alike, when one is not there.
    """
    return [record for name in dict.fromkeys(ids) for record in [ledger.with_id(name) or _nearly(ledger, name)]]


def _nearly(ledger: Ledger, name: str) -> EditRecord:
    """The one edit whose id is printed like this."""
    ids = ledger.ids()
    if len(same := [number for known, number in ids.items() if _printed(known) == _printed(name)]) == 1:
        return ledger.numbered(same)[0]
    alike = difflib.get_close_matches(name, ids, n=3)
    hint = f" (alike: {', '.join(alike)})" if alike else ""
    raise UnknownEdit(f"There is no edit with the id {name}{hint}; nothing was changed.")


def _printed(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split()))
