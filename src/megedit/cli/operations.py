"""The commands for the life of an edit: list, log, diff, add, update, remove, undo, rollback, consolidate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from megedit.adapter.ledger import Status
from megedit.cli.options import (
    AdapterName,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MovedBase,
    err,
    out,
    plain,
    tell_dropped,
    torch_dtype,
)
from megedit.edits import Edit, OnConflict, load_edits, normalise_query
from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from megedit.adapter.ledger import Changed, EditRecord
    from megedit.operations.conflicts import Choice, Conflict, Resolve
    from megedit.operations.operations import Outcome

SHOWN = 20  # changes that are printed one by one
PAGE = 500  # edits that are read and listed at a time
AdapterFolder = Annotated[Path, typer.Argument(help="Folder of the adapter", show_default=False)]


def list_edits(
    adapter: AdapterName,
    status: Annotated[Status | None, typer.Option(help="Only edits with this status")] = None,
    search: Annotated[str | None, typer.Option(help="Only with this text in id, prompt, target or subject")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the edits of an adapter."""
    from megedit.adapter.folder import find_adapter
    from megedit.adapter.ledger import reading

    folder, listed = find_adapter(adapter), 0
    with reading(folder) as ledger:
        revision, counts = ledger.revision, ledger.counts()
    for page in _pages(folder, revision, status, search, limit):
        if as_json:
            for record in page:
                typer.echo(json.dumps({**record.edit.to_json(), **_state(record)}, ensure_ascii=False))
        else:
            out.print(_page(page, first=listed == 0))
        listed += len(page)
    if not as_json:
        known = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        err.print(f"{listed:,} listed; in the adapter: {known}.", highlight=False)


def _pages(
    folder: Path, revision: int, status: Status | None, search: str | None, limit: int | None
) -> Iterator[Sequence[EditRecord]]:
    """The edits of a revision, some at a time; between two pages others may change the adapter."""
    from megedit.adapter.ledger import reading

    last, left = 0, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with reading(folder) as ledger:
            page = ledger.records(revision, status=status, search=search, limit=size, after=last)
        if page:
            yield page
        if len(page) < size:
            return
        last, left = page[-1].number, None if left is None else left - size


def _page(records: Sequence[EditRecord], first: bool) -> Table:
    """Some of the edits as a table that goes on from the one before."""
    table = Table(show_header=first, expand=True, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, width in (("id", None), ("status", 7), ("answered by", 11), ("prompt", None), ("target", None)):
        table.add_column(column, width=width, ratio=None if width else 3 if column == "prompt" else 1, overflow="fold")
    for record in records:
        edit = record.edit
        table.add_row(plain(edit.id), record.status, _neuron(record), _asked(edit), plain(edit.target))
    return table


def _asked(edit: Edit) -> str:
    """The prompt of an edit, below it its wordings, and the aliases of its subject."""
    aliases = [f"{edit.subject}: also {', '.join(edit.aliases)}"] if edit.aliases else []
    return "\n".join(map(plain, [edit.prompt, *(f"- {wording}" for wording in edit.wordings), *aliases]))


def log(adapter: AdapterName, as_json: JsonOption = False) -> None:
    """List what was done with an adapter, the last operation first."""
    from megedit.adapter.folder import find_adapter
    from megedit.adapter.ledger import reading

    with reading(find_adapter(adapter)) as ledger:
        operations = ledger.operations()[::-1]
    if as_json:
        for operation in operations:
            typer.echo(json.dumps(asdict(operation), ensure_ascii=False))
        return
    table = Table()
    for column in ("revision", "UTC", "operation", "of", "result"):
        table.add_column(column, overflow="fold")
    for operation in operations:
        result = ", ".join(f"{name} {value:,}" for name, value in operation.result.items())
        table.add_row(str(operation.revision), operation.time, operation.kind, plain(operation.source), plain(result))
    out.print(table)


def diff(
    first: Annotated[str, typer.Argument(metavar="DIR1", help="Adapter: folder or hub name", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="DIR2", help="The adapter to compare", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Say which edits only one of two adapters has in force, and which have another target."""
    from megedit.adapter.folder import find_adapter
    from megedit.adapter.ledger import reading

    sides = []
    for name in (first, second):
        with reading(find_adapter(name)) as ledger:
            records = ledger.records(status="active")
        sides.append({normalise_query(record.edit.prompt): record.edit for record in records})
    table = Table()
    for column in ("", "prompt", "target in DIR1", "target in DIR2"):
        table.add_column(column, overflow="fold")
    changed = 0
    for query in sides[0] | sides[1]:
        edits = [side.get(query) for side in sides]
        targets = [edit.target if edit else None for edit in edits]
        if targets[0] == targets[1]:
            continue
        changed += 1
        prompt = next(edit.prompt for edit in edits if edit)
        if as_json:
            typer.echo(json.dumps({"prompt": prompt, "first": targets[0], "second": targets[1]}, ensure_ascii=False))
        else:
            sign = "[green]+[/]" if targets[0] is None else "[red]-[/]" if targets[1] is None else "[yellow]~[/]"
            table.add_row(sign, plain(prompt), *(plain(target or "") for target in targets))
    if changed and not as_json:
        out.print(table)
    err.print(f"{changed:,} differences in {len(sides[0] | sides[1]):,} edits.", highlight=False)


def add(
    adapter: AdapterFolder,
    facts: Annotated[
        str, typer.Argument(help="Facts: a file or public data set, as `meg fit` reads them", show_default=False)
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many edits")] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="Two targets for one query in the file: stop with an error, or keep the first")
    ] = "error",
    replace: Annotated[bool, typer.Option("--replace", help="New edits replace those they contradict")] = False,
    skip: Annotated[bool, typer.Option("--skip", help="New edits that contradict others are left out")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Both stay where only wordings are alike")] = False,
    base: MovedBase = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Add facts to an adapter; they answer at once."""
    from megedit.operations import add as add_edits
    from megedit.runtime.progress import Stages

    if replace + skip + keep > 1:
        raise MegError("Give one of --replace, --skip and --keep.")
    edits = load_edits(facts, limit=limit, on_conflict=on_conflict)
    tell_dropped(edits)
    outcome = add_edits(
        adapter, edits, resolve=_resolver(replace, skip, keep),
        base=base, dtype=torch_dtype(dtype), device=device, stages=Stages(err),
    )  # fmt: skip
    _tell(outcome)


def update(
    adapter: AdapterFolder,
    name: Annotated[str, typer.Argument(metavar="ID", help="Id of the edit", show_default=False)],
    target: Annotated[str | None, typer.Option(help="The new answer", show_default=False)] = None,
    wording: Annotated[
        list[str] | None, typer.Option(help="Another way to ask; repeatable; they replace the old ones")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name of the subject; repeatable; they replace the old ones")
    ] = None,
    base: MovedBase = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Give an edit another target, other wordings or aliases; its neuron is collected anew."""
    from megedit.operations import update as update_edit
    from megedit.runtime.progress import Stages

    options: dict[str, Any] = {"base": base, "dtype": torch_dtype(dtype), "device": device, "stages": Stages(err)}
    if target is None and not wording and not alias:
        raise MegError("Say what the edit is to have: give --target, --wording or --alias.")
    _tell(update_edit(adapter, name, target, wordings=wording or None, aliases=alias or None, **options))


def remove(
    adapter: AdapterFolder,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the edits", show_default=False)],
) -> None:
    """Take edits back: their questions get the base model's answers again."""
    from megedit.operations import remove as remove_edits

    _tell(remove_edits(adapter, ids))


def undo(adapter: AdapterFolder) -> None:
    """Take the last operation back; twice, and it is done again."""
    from megedit.operations import undo as undo_last

    _tell(undo_last(adapter))


def rollback(
    adapter: AdapterFolder,
    revision: Annotated[int, typer.Argument(help="A revision that `meg log` lists", show_default=False)],
) -> None:
    """Bring back the edits that were in force at an earlier revision."""
    from megedit.operations import rollback as roll_back

    _tell(roll_back(adapter, revision))


def consolidate(
    adapter: AdapterFolder,
    base: MovedBase = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Teach added edits to router and generator, and drop the weights of removed ones for good."""
    from megedit.operations import consolidate as absorb
    from megedit.runtime.progress import Stages

    outcome = absorb(adapter, base=base, dtype=torch_dtype(dtype), device=device, stages=Stages(err))
    result = ", ".join(f"{name} {value:,}" for name, value in outcome.result.items())
    out.print(f"Revision {outcome.revision}: {result}.", highlight=False)


def _resolver(replace: bool, skip: bool, keep: bool) -> Resolve | None:
    """The decision about conflicts: an option's, the user's, or nobody's."""
    if replace:
        return lambda conflict: "keep" if conflict.kind == "duplicate" else "replace"
    if skip:
        return lambda conflict: "skip"
    if keep:
        return lambda conflict: "keep"
    return _ask if sys.stdin.isatty() and err.is_terminal else None


def _ask(conflict: Conflict) -> Choice:
    if conflict.kind == "duplicate":
        return "keep"
    names: dict[str, Choice] = {"r": "replace", "s": "skip", "k": "keep"}
    if conflict.kind == "query":
        del names["k"]
    err.print(f"Conflict: {plain(str(conflict))}", highlight=False, soft_wrap=True)
    asked = ", ".join(f"[{key}]{name[1:]}" for key, name in names.items())
    while (answer := typer.prompt(asked, err=True).strip().lower()[:1]) not in names:
        pass
    return names[answer]


def _tell(outcome: Outcome) -> None:
    for edit in outcome.skipped:
        err.print(f"Left out: {plain(edit.id)}: {plain(edit.prompt)}", highlight=False, soft_wrap=True)
    for edit in outcome.failed:
        why = outcome.reasons.get(edit.id, "no neuron was found that makes the model answer so")
        err.print(f"Failed: {plain(edit.id)}: {plain(edit.prompt)}: {plain(why)}", highlight=False, soft_wrap=True)
    if not outcome.changes:
        out.print(f"Nothing was changed; the adapter is at revision {outcome.revision}.", highlight=False)
        return
    for changed in outcome.changes[:SHOWN]:
        out.print(_line(changed), highlight=False, soft_wrap=True)
    if len(outcome.changes) > SHOWN:
        out.print(f"... and {len(outcome.changes) - SHOWN:,} more", highlight=False)
    out.print(f"Revision {outcome.revision}; [bold]meg undo[/] takes it back.", highlight=False)


def _line(changed: Changed) -> str:
    edit = changed.record.edit
    sign = "[green]+[/]" if changed.after == "active" else "[red]-[/]" if changed.before == "active" else " "
    return f"{sign} {plain(edit.id)}: {plain(edit.prompt)} -> {plain(edit.target)} ({changed.after or 'gone'})"


def _neuron(record: EditRecord) -> str:
    if record.status != "active":
        return "base model"
    return "generated" if record.generated else "collected"


def _state(record: EditRecord) -> dict[str, Any]:
    return {"status": record.status, "lead": record.lead, "generated": record.generated}
