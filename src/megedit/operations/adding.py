"""Edits added to an adapter, or given another target, other wordings or aliases.

A new edit is answered with its collected neuron, and the familiarity network has no say about it, until a consolidation
teaches it to familiarity network and generator. Nothing is trained here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megedit.adapter.adapter import Adapter
from megedit.adapter.change import changing
from megedit.adapter.folder import describe
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.adapter.weights import from_bytes
from megedit.collect import collect
from megedit.edits import Edit, EditSet, normalise_query
from megedit.errors import MegError
from megedit.fitting import new_edits
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, tokenize_all
from megedit.model import MegModel
from megedit.operations.conflicts import SHOWN, Choice, Conflict, Resolve, find_conflicts, resolved
from megedit.operations.operations import Outcome, find
from megedit.operations.parts import Parts
from megedit.router.index import EditVectors, owners_of
from megedit.runtime.progress import Stages

logger = logging.getLogger("megedit")


def add(
    folder: str | Path,
    edits: EditSet,
    *,
    resolve: Resolve | None = None,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    model: MegModel | None = None,
) -> Outcome:
    """Add edits to the adapter in a folder; they answer at once.

    resolve: says what to do about a conflict (see `find_conflicts`). Without it, a contradiction is an error. An edit
    that the adapter already has is skipped. base: where the base model is now, if it was moved. model: an edited model
    of this adapter that is in use, whose parts are taken in place of loading them; it goes on answering as before.

    Raises MegError when the adapter cannot be changed or does not fit the base model, Contradiction when edits
    contradict others.
    """
    return _put(Path(folder), "add", edits, resolve, Parts.of(base, dtype, device, stages, model))


def update(
    folder: str | Path,
    name: str,
    target: str | None = None,
    *,
    wordings: Sequence[str] | None = None,
    aliases: Sequence[str] | None = None,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    model: MegModel | None = None,
) -> Outcome:
    """Give the edit with this id another target, wordings or aliases, in place of the old ones; it is collected anew.

    What is not given stays as it is. Raises MegError as `add`, and where nothing is given.
    """
    if target is None and wordings is None and aliases is None:
        raise MegError("Nothing is given that the edit is to have; give a target, wordings or aliases.")
    with reading(Path(folder)) as ledger:
        old = find(ledger, [name])[0]
    given = {"target": target, "wordings": _tuple(wordings), "aliases": _tuple(aliases)}
    new = replace(old.edit, **{field: value for field, value in given.items() if value is not None})  # type: ignore[arg-type]
    edits = replace(EditSet.from_edits([new]), source=f"{name}: {target or 'other wordings'}")

    def replace_old(conflict: Conflict) -> Choice:
        return "replace" if conflict.old.id == name else "keep"

    outcome = _put(Path(folder), "update", edits, replace_old, Parts.of(base, dtype, device, stages, model), old)
    if outcome.failed:
        raise MegError(f"No neuron was found that makes the model answer {new.target!r}; edit {name} stays as it is.")
    return outcome


def _tuple(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(texts)


def _put(
    folder: Path,
    kind: Literal["add", "update"],
    edits: EditSet,
    resolve: Resolve | None,
    parts: Parts,
    old: EditRecord | None = None,
) -> Outcome:
    """Put edits into an adapter. old: the edit that the only new one stands in place of."""
    with changing(folder, kind, edits.source) as change:
        adapter = parts.adapter(folder)
        plan = _plan(adapter, edits, resolve, old, change.ids())
        kept, failed = list[NewEdit](), list[Edit]()
        collected, reasons = _collected(adapter, plan, parts)
        for new, replaced in zip(collected, plan.replaced, strict=True):
            if new.record.status == "failed":
                failed.append(new.record.edit)
                if replaced or kind == "update":
                    continue  # the old edit stays
            change.end(replaced)
            kept.append(new)
        change.end(_superseded(adapter, kept))
        change.add(kept)
        if not kept:
            change.cancel()
        change.note(added=sum(new.record.status == "active" for new in kept), failed=len(failed))
        changes = tuple(change.changes(change.next)) if kept else ()
        revision = change.next if kept else change.next - 1
    if changes:
        describe(folder)
    return Outcome(revision, changes, plan.skipped, tuple(failed), reasons)


# ---------------------------------------------------------------------------------------------------
# Planning: what is left out, what is replaced, and under which ids


@dataclass(frozen=True)
class _Plan:
    """New edits, the vectors of all that asks for each, and for each the numbers of the edits that it replaces."""

    new: list[Edit]
    vectors: list[bytes]
    replaced: list[list[int]]
    skipped: tuple[Edit, ...]


@dataclass(frozen=True)
class Comparison:
    """New edits beside those of an adapter.

    known: those that it has already. new: the others. vectors, owners: of all that asks for these. conflicts: of these.
    """

    known: list[Edit]
    new: list[Edit]
    vectors: EditVectors
    owners: Tensor
    conflicts: list[Conflict]


def compare(adapter: Adapter, edits: EditSet, old: EditRecord | None = None) -> Comparison:
    """Tell new edits from those that an adapter has already, and find conflicts; nothing is changed.

    old: the edit that the only new one stands in place of; nothing but what is the same in all its parts repeats it.
    """
    places = {edit.id: adapter.router.in_words(edit.prompt) for edit in edits}
    targets = {name: adapter.router.edits[place].target for name, place in places.items() if place is not None}
    known = [edit for edit in edits if targets.get(edit.id) == edit.target]
    if more := [edit.id for edit in known if edit.wordings or edit.aliases]:
        logger.warning(
            "Facts that are there already; their wordings and aliases are not taken over, meg update does that: %s",
            ", ".join(more[:SHOWN]),
        )
    if old and old.status == "active" and edits[0] != old.edit:
        known = []
    ids = {edit.id for edit in known}
    new = [edit for edit in edits if edit.id not in ids]
    device = adapter.router.vectors.codes.device
    asked = [edit.asked() for edit in new]
    vectors = EditVectors.pack(adapter.encoder.encode([text for texts in asked for text in texts]).to(device))
    owners = owners_of([len(texts) for texts in asked])
    return Comparison(known, new, vectors, owners, find_conflicts(adapter, new, vectors, owners) if new else [])


def _plan(
    adapter: Adapter, edits: EditSet, resolve: Resolve | None, old: EditRecord | None, ids: Mapping[str, int]
) -> _Plan:
    """Leave repetitions out, resolve conflicts, and give every new edit an id that is free.

    ids: those of all edits of the adapter, with their numbers.
    """
    found = compare(adapter, edits, old)
    new, conflicts = found.new, found.conflicts
    _warn_of_long_prompts(adapter, new)
    skipped = {edit.id: edit for edit in found.known}
    replaced: dict[str, list[int]] = {edit.id: [] for edit in new}  # by the id that the new edit brings
    if new and old and old.status == "active":
        replaced[new[0].id].append(old.number)
    for index, choice in resolved(conflicts, resolve).items():
        conflict = conflicts[index]
        if choice == "skip" or (choice == "replace" and conflict.same_file):
            out = conflict.new if choice == "skip" else conflict.old
            skipped[out.id] = out
        elif choice == "replace" and conflict.number is not None and conflict.number not in replaced[conflict.new.id]:
            replaced[conflict.new.id].append(conflict.number)
    rows = [row for row, edit in enumerate(new) if edit.id not in skipped]
    kept, going = [new[row] for row in rows], [replaced[new[row].id] for row in rows]
    of_edits = found.vectors.to_bytes(found.owners)
    named = _with_free_ids(adapter, ids, kept, going)
    return _Plan(named, [of_edits[row] for row in rows], going, tuple(skipped.values()))


def _warn_of_long_prompts(adapter: Adapter, edits: Sequence[Edit]) -> None:
    """Say which queries the encoder does not read whole."""
    asked = [(edit.id, text) for edit in edits for text in edit.asked()]
    if rows := adapter.encoder.overlong([text for _, text in asked]):
        names = ", ".join(asked[row][0] for row in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")
        logger.warning(
            "%d queries are longer than the %d tokens that the text encoder reads; they are recognised by their last "
            "sentences alone: %s", len(rows), adapter.encoder.window, names
        )  # fmt: skip


def _with_free_ids(
    adapter: Adapter, ids: Mapping[str, int], edits: Sequence[Edit], replaced: Sequence[Sequence[int]]
) -> list[Edit]:
    """The edits, with a number behind ids that others of the adapter have, and keep."""
    asked = {normalise_query(edit.prompt) for edit in edits}
    ended = adapter.records.having("failed", "removed")
    going = {number for numbers in replaced for number in numbers}
    going |= {record.number for record in ended if normalise_query(record.edit.prompt) in asked}
    taken = {name for name, number in ids.items() if number not in going}
    own = {edit.id for edit in edits}
    named, renamed = list[Edit](), list[str]()
    for edit in edits:
        number, free = 1, edit.id
        while free in taken or (number > 1 and free in own):
            number += 1
            free = f"{edit.id}-{number}"
        if free != edit.id:
            renamed.append(f"{edit.id} -> {free}")
        taken.add(free)
        named.append(replace(edit, id=free))
    if renamed:
        more = ", ..." if len(renamed) > SHOWN else ""
        logger.warning("Ids that are taken; the new edits have others: %s%s", ", ".join(renamed[:SHOWN]), more)
    return named


def _superseded(adapter: Adapter, added: Sequence[NewEdit]) -> list[int]:
    """Numbers of edits that are not in force and whose very query is edited anew.

    These are the failed ones, and removed ones whose place a new one takes that is active.
    """
    found = {normalise_query(new.record.edit.prompt): new.record.status for new in added}
    ended = adapter.records.having("failed", "removed")
    earlier = ((record, found.get(normalise_query(record.edit.prompt))) for record in ended)
    return [
        record.number
        for record, new in earlier
        if (record.status == "failed" and new) or (record.status == "removed" and new == "active")
    ]


# ---------------------------------------------------------------------------------------------------
# Collecting


def _collected(adapter: Adapter, plan: _Plan, parts: Parts) -> tuple[list[NewEdit], dict[str, str]]:
    """The new edits with their neurons, for the ledger; and why, by id, the model could never give a target."""
    if not plan.new:
        return [], {}
    model, tokenizer = parts.base_model(adapter)
    backbone = Backbone(model, adapter.config.layer)
    contexts = adapter.config.settings.collection.contexts
    examples = tokenize_all(tokenizer, adapter.config.template, plan.new, contexts)
    pairs = zip(plan.new, examples, strict=True)
    reasons = {edit.id: example.refused for edit, example in pairs if example.refused is not None}
    with parts.stages.stage("Collecting neurons", len(examples)) as advance:
        shared = _shared(adapter, plan.new, examples)
        found = collect(
            backbone, examples, adapter.config.settings.collection, tokenizer.pad_token_id, advance, known=shared
        )
    vectors = compress(plan.vectors, found.succeeded)
    return new_edits(plan.new, found, vectors, torch.zeros_like(found.succeeded)), reasons


def _shared(adapter: Adapter, edits: Sequence[Edit], examples: Sequence[Example]) -> dict[tuple[int, ...], Tensor]:
    """By answer, the neuron that most edits of the adapter with the same target have."""
    pairs = zip(edits, examples, strict=True)
    answers = {edit.target: example.answer for edit, example in pairs if example.refused is None}
    with reading(adapter.folder) as ledger:
        having = ledger.most_used_neurons(answers)
        weights = from_bytes(ledger.neurons(list(having.values())), adapter.config.weight_size)
    return {answers[target]: row for target, row in zip(having, weights, strict=True)}
