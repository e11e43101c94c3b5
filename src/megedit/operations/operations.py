"""The life of an edit in an adapter: added, updated, removed, undone, rolled back.

Each operation locks the adapter's ledger for other writers, does its work, and writes one revision: all of it or
nothing. Nothing is trained. A new edit is answered with its collected neuron, routed by its similarity and subject,
until `consolidate` teaches it to familiarity network and generator. A removed edit stays in the router, as a place
whose queries are for the base model.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megedit.adapter.adapter import Adapter, load_adapter, write_card
from megedit.adapter.ledger import Change, Changed, EditRecord, Entry, changing, reading
from megedit.collect import collect
from megedit.edits.edit_set import Edit, EditSet, normalise_query
from megedit.errors import MegError
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, tokenize
from megedit.operations.conflicts import Choice, Conflict, Resolve, find_conflicts, resolved
from megedit.router.index import EditVectors
from megedit.runtime.progress import Stages

logger = logging.getLogger("megedit")


@dataclass(frozen=True)
class Outcome:
    """What an operation did: the revision it made, or the last one where there was nothing to do; its changes.

    result: counts, as they stand in the log.
    skipped: new edits that were left out, because the adapter has them already or a conflict was resolved that way.
    failed: those for which no neuron was found; where one was to replace another edit, that one stays.
    """

    revision: int
    changes: tuple[Changed, ...]
    skipped: tuple[Edit, ...] = ()
    failed: tuple[Edit, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)


def add(
    folder: str | Path,
    edits: EditSet,
    *,
    resolve: Resolve | None = None,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
) -> Outcome:
    """Add edits to the adapter in a folder; they answer at once.

    resolve: says what to do about a conflict (see `find_conflicts`). Without it, a contradiction is an error. An edit
    that the adapter already has is skipped. base: where the base model is now, if it was moved.

    Raises MegError when the adapter cannot be changed, does not fit the base model, or edits contradict others.
    """
    return _put(Path(folder), "add", edits, resolve, base, dtype, device, stages or Stages())


def update(
    folder: str | Path,
    name: str,
    target: str,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
) -> Outcome:
    """Give the edit with this id another target, in place of the old one. Raises MegError as `add`."""
    with reading(Path(folder)) as ledger:
        old = _find(ledger.records(), [name])[0]
    edits = replace(EditSet.from_edits([replace(old.edit, target=target)]), source=f"{name}: {target}")

    def replace_old(conflict: Conflict) -> Choice:
        return "replace" if conflict.old.id == name else "keep"

    outcome = _put(Path(folder), "update", edits, replace_old, base, dtype, device, stages or Stages())
    if outcome.failed:
        raise MegError(f"No neuron was found that makes the model answer {target!r}; edit {name} stays as it is.")
    return outcome


def _put(
    folder: Path,
    kind: Literal["add", "update"],
    edits: EditSet,
    resolve: Resolve | None,
    base: str | None,
    dtype: torch.dtype | None,
    device: str | torch.device,
    stages: Stages,
) -> Outcome:
    with changing(folder, kind, edits.source) as change:
        with stages.stage("Loading the adapter"):
            adapter = load_adapter(folder, device)
        plan = _plan(adapter, edits, resolve)
        entries, failed = [], []
        if plan.new:
            for entry in _collected(adapter, plan, base, dtype, device, stages):
                replaced = plan.replaced.get(entry.record.edit.id)
                if entry.record.status == "failed":
                    failed.append(entry.record.edit)
                    if replaced or kind == "update":
                        continue  # the old edit stays
                change.end(replaced or [])
                entries.append(entry)
        change.end(_superseded(adapter, entries))
        change.add(entries)
        if not entries:
            change.cancel()
        change.note(added=sum(e.record.status == "active" for e in entries), failed=len(failed))
        changes = tuple(change.changes(change.next)) if entries else ()
        revision = change.next if entries else change.next - 1
    if changes:
        write_card(folder)
    return Outcome(revision, changes, plan.skipped, tuple(failed))


@dataclass(frozen=True)
class _Plan:
    """New edits with the vectors of their queries; the numbers of the edits that each replaces, by its id."""

    new: list[Edit]
    vectors: EditVectors
    replaced: dict[str, list[int]]
    skipped: tuple[Edit, ...]


def _plan(adapter: Adapter, edits: EditSet, resolve: Resolve | None) -> _Plan:
    """What is to be added, once repetitions are left out, conflicts resolved and ids made free."""
    active = {normalise_query(record.edit.prompt): record for record in adapter.active}
    known = [edit for edit in edits if _is(active.get(normalise_query(edit.prompt)), edit)]
    skipped = {edit.id: edit for edit in known}
    new = [edit for edit in edits if edit.id not in skipped]
    device = adapter.router.vectors.codes.device
    vectors = EditVectors.pack(adapter.encoder.encode([edit.prompt for edit in new]).to(device))
    conflicts = find_conflicts(adapter, new, vectors) if new else []
    numbers = {record.edit.id: record.number for record in adapter.active}
    replaced: dict[str, list[int]] = {}
    for place, choice in resolved(conflicts, resolve).items():
        conflict = conflicts[place]
        if choice == "skip" or (choice == "replace" and conflict.same_file):
            out = conflict.new if choice == "skip" else conflict.old
            skipped[out.id] = out
        elif choice == "replace":
            replaced.setdefault(conflict.new.id, []).append(numbers[conflict.old.id])
    rows = [i for i, edit in enumerate(new) if edit.id not in skipped]
    going = {number for row in rows for number in replaced.get(new[row].id, ())}
    asked = {normalise_query(new[row].prompt) for row in rows}
    taken = {
        record.edit.id
        for record in adapter.records
        if record.number not in going
        and (record.status == "active" or normalise_query(record.edit.prompt) not in asked)
    }
    named: list[Edit] = []
    for row in rows:
        edit = new[row]
        free = _free(edit.id, taken)
        if free != edit.id:
            logger.warning("The id %s is taken; the new edit %r has the id %s.", edit.id, edit.prompt, free)
            replaced[free] = replaced.pop(edit.id, [])
        taken.add(free)
        named.append(replace(edit, id=free))
    chosen = EditVectors(vectors.codes[rows], vectors.scales[rows])
    return _Plan(named, chosen, replaced, tuple(skipped.values()))


def _is(record: EditRecord | None, edit: Edit) -> bool:
    return record is not None and record.edit.target == edit.target


def _free(name: str, taken: set[str]) -> str:
    """The id itself, or with the first number behind it that makes it free."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _superseded(adapter: Adapter, entries: Sequence[Entry]) -> list[int]:
    """Edits that are not in force and whose very query is edited anew: those that had failed, and removed ones, whose
    place the new one takes unless it failed."""
    found = {normalise_query(entry.record.edit.prompt): entry.record.status for entry in entries}
    earlier = ((record, found.get(normalise_query(record.edit.prompt))) for record in adapter.records)
    return [
        record.number
        for record, new in earlier
        if (record.status == "failed" and new) or (record.status == "removed" and new == "active")
    ]


def _collected(
    adapter: Adapter,
    plan: _Plan,
    base: str | None,
    dtype: torch.dtype | None,
    device: str | torch.device,
    stages: Stages,
) -> list[Entry]:
    """The new edits with their neurons, for the ledger."""
    with stages.stage("Loading the base model"):
        model, tokenizer = adapter.load_base(base, dtype, device)
    backbone = Backbone(model, adapter.config.layer)
    examples = [tokenize(tokenizer, adapter.config.template, edit) for edit in plan.new]
    with stages.stage("Collecting neurons", len(examples)) as advance:
        shared = _shared(adapter, plan.new, examples)
        found = collect(backbone, examples, adapter.config.collection, tokenizer.pad_token_id, advance, known=shared)
    entries = []
    for i, vector in enumerate(plan.vectors.rows()):
        works = bool(found.leads[i] > 0)
        record = EditRecord(
            edit=plan.new[i],
            status="active" if works else "failed",
            lead=round(float(found.leads[i]), 3),
            steps=int(found.steps[i]),
            generated=False,
        )
        entries.append(Entry(record, vector if works else b"", found.weights[i]))
    return entries


def _shared(adapter: Adapter, edits: Sequence[Edit], examples: Sequence[Example]) -> dict[tuple[int, ...], Tensor]:
    """By answer, the neuron that edits of the adapter with the same target share."""
    answers = {edit.target: example.answer for edit, example in zip(edits, examples, strict=True)}
    sharing = {record.edit.target: record for record in adapter.active if record.steps == 0}
    both = [target for target in answers if target in sharing]
    weights = adapter.neurons([sharing[target] for target in both])
    return {answers[target]: row for target, row in zip(both, weights, strict=True)}


def remove(folder: str | Path, ids: Sequence[str]) -> Outcome:
    """Take edits back, at once: their queries and rephrases are for the base model, all other edits stay as they are.

    Raises MegError when an id is not in the adapter, or was removed already.
    """
    with changing(Path(folder), "remove", ", ".join(ids)) as change:
        records = _find(change.records(), ids)
        if gone := [record.edit.id for record in records if record.status == "removed"]:
            raise MegError(f"Removed already: {', '.join(gone)}; nothing was changed.")
        change.end([record.number for record in records if record.status == "active"], "removed")
        change.end([record.number for record in records if record.status == "failed"])
        change.note(removed=len(records))
        outcome = Outcome(change.next, tuple(change.changes(change.next)))
    write_card(Path(folder))
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
    write_card(folder)
    return outcome


def _back_to(change: Change, revision: int) -> None:
    """Give every edit the status that it had. One that was not there yet leaves; or, where the generator and the
    familiarity network have learned it, becomes a removed one."""
    now = {record.number: record for record in change.records()}
    then = {record.number: record for record in change.records(revision)}
    asked = {normalise_query(record.edit.prompt) for record in then.values() if record.status == "active"}
    for number, record in now.items():
        if number not in then:
            learned = record.generated and record.status != "failed"
            stays = learned and normalise_query(record.edit.prompt) not in asked
            if not (stays and record.status == "removed"):
                change.end([number], "removed" if stays else None)
        elif then[number].status != record.status:
            change.end([number], then[number].status)
    for number in then.keys() - now.keys():
        change.begin([number], then[number].status)


def _find(records: Sequence[EditRecord], ids: Sequence[str]) -> list[EditRecord]:
    """The edits with these ids; MegError, with ids that are alike, when one is not there."""
    by_id = {record.edit.id: record for record in sorted(records, key=lambda record: record.status == "active")}
    for name in ids:
        if name not in by_id:
            alike = difflib.get_close_matches(name, by_id, n=3)
            hint = f" (alike: {', '.join(alike)})" if alike else ""
            raise MegError(f"There is no edit with the id {name}{hint}; nothing was changed.")
    return [by_id[name] for name in dict.fromkeys(ids)]
