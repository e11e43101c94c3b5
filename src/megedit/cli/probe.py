"""`meg probe`: collection in every layer, as a table, a file and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from megedit.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    EditsOption,
    check_places,
    err,
    out,
    plain,
    torch_dtype,
)
from megedit.edits import load_edits
from megedit.errors import MegError


def probe(
    base: BaseOption,
    edits: EditsOption,
    out_file: Annotated[Path, typer.Option("--out", help="JSON file for the result")] = Path("probe.json"),
    figure: Annotated[Path | None, typer.Option(help="Draw it too: an .svg file")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to try, such as 8,12,16 [default: all]")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Only every so many-th layer")] = 1,
    limit: Annotated[int, typer.Option(min=1, help="Only the first so many edits")] = 64,
    pseudo_rephrases: Annotated[
        bool,
        typer.Option("--pseudo-rephrases", help="Put noise before the queries even where the edits bring rephrases"),
    ] = False,
    template: Annotated[str, typer.Option(help="As for `meg fit`")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Find the layer for a model: collect some edits in every layer and try their neurons on other wordings."""
    check_places(out_file)
    check_places(figure)
    if figure is not None and figure.suffix.lower() != ".svg":
        raise MegError(f"--figure is {figure}; only an .svg file can be drawn: name one.")
    chosen = _numbers(layers) if layers else None

    from megedit.layers import probe_model
    from megedit.runtime.progress import Stages

    result = probe_model(
        base,
        load_edits(edits, limit=limit).edits,
        out_file,
        layers=chosen,
        stride=stride,
        own_rephrases=not pseudo_rephrases,
        template=template,
        seed=seed,
        dtype=torch_dtype(dtype),
        device=device,
        stages=Stages(err),
    )
    out.print(_table(result))
    out.print(f"Layer [bold]{result['recommended']}[/]: {plain(result['why'])}.", highlight=False)
    out.print(f"The result is in [bold]{plain(str(out_file))}[/].", highlight=False, soft_wrap=True)
    if figure is not None:
        draw(result, figure)


def _numbers(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise MegError(f"--layers is {text!r}; give numbers with commas between them, such as 8,12,16.") from None


def _table(result: dict[str, Any]) -> Table:
    """A row for each layer, the recommended one in bold."""
    table = Table()
    for column in ("layer", "reliability", "generality", "norm of v", "seconds an edit"):
        table.add_column(column, justify="right")
    for row in result["layers"]:
        cells = (f"{row['reliability']:.1f}", f"{row['generality']:.1f}", f"{row['norm']:.1f}", f"{row['seconds']:.3f}")
        table.add_row(str(row["layer"]), *cells, style="bold" if row["layer"] == result["recommended"] else "")
    return table


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw reliability and generality by layer, the recommended one marked, as in figures 5 to 7 of the paper.

    result: that of `probe_model`. path: an .svg file.
    """
    from megedit.evaluate.report.charts import line_chart, svg_file
    from megedit.runtime.files import write_output

    series = {
        name: [(float(row["layer"]), float(row[name])) for row in result["layers"]]
        for name in ("reliability", "generality")
    }
    description = f"{result['base']}: collected neurons by layer; recommended: {result['recommended']}"
    chart = line_chart(
        series, "layer of the neuron", "percent, collected neurons", description, marked=result["recommended"]
    )
    write_output(path, svg_file(chart))
