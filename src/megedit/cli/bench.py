"""`meg bench`: editing methods side by side, as a table and a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from megedit.baselines import ABLATIONS, METHODS, method_named
from megedit.cli.options import BaseOption, DeviceOption, DtypeOption, err, out, plain, torch_dtype
from megedit.cli.settings import with_changes
from megedit.edits.public import PUBLIC
from megedit.errors import MegError

COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (  # the title, the way from a row to the number, its form
    ("Reliability AG", ("metrics", "reliability_ag", "value"), ".1f"),
    ("TF", ("metrics", "reliability_tf", "value"), ".1f"),
    ("Generality AG", ("metrics", "generality_ag", "value"), ".1f"),
    ("TF", ("metrics", "generality_tf", "value"), ".1f"),
    ("Locality AG", ("metrics", "locality_ag", "value"), ".1f"),
    ("TF", ("metrics", "locality_tf", "value"), ".1f"),
    ("Score", ("metrics", "score", "value"), ".1f"),
    ("recognised", ("contrast", "recognised", "value"), ".1f"),
    ("false fires", ("contrast", "false", "value"), ".1f"),
    ("s an edit", ("seconds_per_edit",), ".3f"),
    ("peak MB", ("peak_memory_mb",), ".0f"),
    ("stored bytes", ("stored_bytes",), ",d"),
    ("answers a s", ("answers_per_second",), ".1f"),
)
METHODS_HELP = (
    f"With commas between them, of {', '.join(METHODS)}; or all of these; and MegEdit without one part each: "
    f"{', '.join(ABLATIONS)}"
)


def bench(
    base: BaseOption,
    data: Annotated[
        str, typer.Option(help=f"Edits: a file, or a public set ({', '.join(PUBLIC)})", show_default=False)
    ],
    edits: Annotated[str, typer.Option(help="Numbers of edits, with commas between them")] = "1000",
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = "all",
    asked: Annotated[int, typer.Option(min=1, help="Edits that are asked about, drawn by the seed")] = 1000,
    contrast: Annotated[
        Path | None, typer.Option(help="Facts with contrast texts, edited beside the others (docs/contrast.md)")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the result")] = Path("bench"),
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of a method, such as ft.lr=1e-4; again for more", metavar="METHOD.NAME=VALUE"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Measure editing methods side by side: the same edits, questions and protocols for all of them.

    A method that fails is a row that says why. An interrupted bench goes on when the same command is given again.
    """
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    settings = settings_of(names, changes or ())
    from megedit.baselines.bench import Bench, run

    plan = Bench(
        base=base,
        data=data,
        sizes=tuple(numbers(edits)),
        methods=tuple(names),
        asked=asked,
        contrast=str(contrast) if contrast else None,
        settings=settings,
        seed=seed,
        device=device,
        dtype=torch_dtype(dtype),
    )
    if out_dir.exists() and not out_dir.is_dir():
        raise MegError(f"{out_dir} is a file; name a folder for the result.")
    result = run(plan, out_dir, err)
    for size in plan.sizes:
        out.print(table(result["rows"], size))
    for row in result["rows"]:
        if "error" in row:
            out.print(f"{row['method']}, {row['edits']} edits: {plain(row['error'])}", highlight=False, soft_wrap=True)
    out.print(f"The result is in [bold]{plain(str(out_dir / 'bench.json'))}[/].", highlight=False, soft_wrap=True)


def settings_of(names: Sequence[str], changes: Sequence[str]) -> dict[str, Any]:
    """By method, its settings where some are changed. Raises MegError for an unknown method or setting."""
    found: dict[str, Any] = {}
    kinds = {name: method_named(name) for name in names}
    for change in changes:
        name, _, rest = change.partition(".")
        if name not in kinds:
            raise MegError(f"--set {change}: {name!r} is none of the methods that are measured, {', '.join(names)}.")
        found[name] = with_changes(found.get(name, kinds[name].default_settings()), [rest], f"{name}.")
    return found


def numbers(text: str) -> list[int]:
    """Numbers of edits, rising. Raises MegError for what is none."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise MegError(f"--edits is {text!r}; give numbers from 1 on with commas between them, such as 1024,4096.")
    return found


def table(rows: Sequence[Mapping[str, Any]], size: int) -> Table:
    """One line for each method with so many edits."""
    drawn = Table(title=f"{size:,} edits", title_justify="left")
    drawn.add_column("")
    for title, _, _ in COLUMNS:
        drawn.add_column(title, justify="right")
    for row in rows:
        if row["edits"] == size:
            cells = ["failed", *[""] * (len(COLUMNS) - 1)] if "error" in row else texts(row)
            drawn.add_row(row["method"], *cells)
    return drawn


def texts(row: Mapping[str, Any]) -> list[str]:
    """The numbers of a row as texts; empty where one was not measured."""
    found = []
    for _, way, form in COLUMNS:
        value: Any = row
        for step in way:
            value = value.get(step) if value is not None else None
        found.append("" if value is None else format(value, form))
    return found
