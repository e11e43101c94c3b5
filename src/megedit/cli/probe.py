"""`meg probe`: collection in every layer, as a table, a file and a figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    write_json,
)
from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind it take seconds to import
    from megedit.layers import LayerResult


def probe(
    base: BaseOption,
    edits: EditsOption,
    out_file: Annotated[Path, typer.Option("--out", help="JSON file for the result")] = Path("probe.json"),
    figure: Annotated[Path | None, typer.Option(help="Draw it too: a .svg, .png or .pdf file")] = None,
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
    from megedit.collect import CollectionSettings
    from megedit.edits.edit_set import read_edits
    from megedit.layers import other_wordings, recommended
    from megedit.layers import probe as probe_layers
    from megedit.lm.loading import fingerprint, load_base
    from megedit.lm.structure import find_decoder_layers
    from megedit.lm.template import Template
    from megedit.pseudo.knowledge import load_pseudo_knowledge
    from megedit.runtime.progress import Stages
    from megedit.runtime.provenance import machine, versions
    from megedit.runtime.resume import Workspace

    check_places(out_file)
    check_places(figure)
    some = list(read_edits(edits, limit=limit))
    wordings = other_wordings(some, load_pseudo_knowledge().noise, seed, given=not pseudo_rephrases)
    stages = Stages(err)
    with stages.stage("Loading the base model"):
        model, tokenizer = load_base(base, dtype=torch_dtype(dtype), device=device)
    form, settings = Template.for_tokenizer(tokenizer, template), CollectionSettings()
    depth = len(find_decoder_layers(model))
    chosen = _numbers(layers, depth) if layers else list(range(0, depth, stride))
    inputs: dict[str, Any] = {
        "base": fingerprint(model),
        "dtype": str(model.dtype),
        "template": asdict(form),
        "collection": asdict(settings),
        "edits": [edit.to_json() for edit in some],
        "wordings": [asdict(wording) for wording in wordings],
    }
    work = Workspace(out_file, hashlib.sha256(json.dumps(inputs).encode()).hexdigest())
    with stages.stage("Probing layers", len(chosen)) as advance:
        results = probe_layers(model, tokenizer, form, some, wordings, chosen, settings, advance, work.json)
    layer, why = recommended(results, len(wordings), depth)
    table = Table()
    for column in ("layer", "reliability", "generality", "norm of v", "seconds an edit"):
        table.add_column(column, justify="right")
    for row in results:
        style = "bold" if row.layer == layer else ""
        cells = (f"{row.reliability:.1f}", f"{row.generality:.1f}", f"{row.norm:.1f}", f"{row.seconds:.3f}")
        table.add_row(str(row.layer), *cells, style=style)
    out.print(table)
    out.print(f"Layer [bold]{layer}[/]: {plain(why)}.", highlight=False)
    values = {
        "base": base,
        "depth": depth,
        "recommended": layer,
        "why": why,
        "layers": [asdict(result) for result in results],
        "edits": len(some),
        "wordings": len(wordings),
        "seed": seed,
        "fingerprint": inputs["base"],
        "settings": {name: inputs[name] for name in ("dtype", "template", "collection")},
        "machine": machine(),
        "versions": versions(),
    }
    write_json(values, out_file, "The result")
    work.remove()
    if figure is not None:
        draw(results, layer, base, figure)


def _numbers(text: str, depth: int) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise MegError(f"--layers is {text!r}; give numbers with commas between them, such as 8,12,16.") from None
    if wrong := [number for number in numbers if not 0 <= number < depth]:
        raise MegError(f"Layer {wrong[0]} is out of range: the model has layers 0 to {depth - 1}.")
    return numbers


def draw(results: Sequence[LayerResult], layer: int, title: str, path: Path) -> None:
    """Reliability and generality by layer, the recommended one marked, as in figures 5 to 7 of the paper."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    numbers = [result.layer for result in results]
    axis.plot(numbers, [result.reliability for result in results], "o-", color="#768390", label="reliability")
    axis.plot(numbers, [result.generality for result in results], "o-", color="#2f81f7", label="generality")
    axis.axvline(layer, color="#d29922", linestyle=":", label=f"recommended: {layer}")
    axis.set(xlabel="layer of the neuron", ylabel="percent, collected neurons", ylim=(-3, 103), title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise MegError(f"{path} cannot be written ({error}).") from error
