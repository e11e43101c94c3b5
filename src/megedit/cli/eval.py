"""The commands `meg eval` and `meg report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megedit.cli.options import (
    AdapterName,
    DeviceOption,
    DtypeOption,
    MovedBase,
    check_places,
    err,
    out,
    plain,
    torch_dtype,
    write_json,
)

if TYPE_CHECKING:
    from megedit.edits.edit_set import EditSet
    from megedit.evaluate import Evaluation, EvaluationSettings
    from megedit.model import MegModel

AskedThrough = Literal["adapter", "chat", "raw"]


def evaluate(
    adapter: AdapterName,
    data: Annotated[
        str | None,
        typer.Option(
            help="Edits with rephrases and neighbours: a file, or counterfact, zsre, knowedit, mquake from the Hugging "
            "Face Hub [default: those in the adapter]"
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="paper, wild, cloze, counterfact, zsre-tf, multi-hop or long")
    ] = "paper",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many edits")] = None,
    rephrases: Annotated[int | None, typer.Option(min=0, help="Rephrases an edit [default: all]")] = None,
    neighbours: Annotated[
        int | None, typer.Option(min=0, help="Neighbourhood prompts an edit [default: the protocol's]")
    ] = None,
    robustness: Annotated[
        str | None, typer.Option(help="Also ask the edits' queries perturbed: all, or names such as typos,noise")
    ] = None,
    template: Annotated[
        AskedThrough | None,
        typer.Option(help="The adapter's template, the model's chat template alone, or none [default: the protocol's]"),
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write every question, answer and verdict to this JSON file")
    ] = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report and the JSON file to this folder")
    ] = None,
    general: Annotated[
        str | None,
        typer.Option(help="Instead, run these tasks of lm-evaluation-harness on both models, such as piqa,arc_easy"),
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="With --general: folder with tasks of your own, used offline")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Edits to show with their answers")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of perturbations and bootstrap")] = 0,
    base: MovedBase = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked at a time")] = 128,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Measure an adapter by a named protocol, the unedited model beside it.

    An interrupted evaluation goes on when the same command is given again.
    """
    from megedit.edits.edit_set import EditSet
    from megedit.edits.public import load_edits
    from megedit.evaluate import EvaluationSettings, find_protocol
    from megedit.evaluate.perturb import PERTURBATIONS
    from megedit.model import MegModel

    find_protocol(protocol)
    check_places(out_file, report_dir)
    chosen = load_edits(data, limit=limit, on_conflict="first") if data else None
    names = tuple(PERTURBATIONS) if robustness == "all" else tuple(filter(None, (robustness or "").split(",")))
    settings = EvaluationSettings(
        rephrases=rephrases,
        neighbours=neighbours,
        robustness=names,
        template=template,
        batch_size=batch_size,
        seed=seed,
    )
    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    if general is not None:
        _general(model, general, limit, task_folder, batch_size, seed, out_file)
        return
    if chosen is None:
        made = [record.edit for record in model.adapter.records if record.status != "removed"]
        chosen = EditSet(tuple(made[:limit]), adapter, "adapter")
    for line in chosen.dropped_summary():
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    result = evaluate_and_print(model, chosen, adapter, protocol, settings, examples).to_json()
    if out_file is not None:
        write_json(result, out_file, "Every answer")
    if report_dir is not None:
        from megedit.evaluate.report import write_report

        page = write_report([result], report_dir)
        write_json(result, report_dir / "result.json", "Every answer")
        out.print(f"The report is [bold]{plain(str(page))}[/].", highlight=False, soft_wrap=True)


def report(
    results: Annotated[list[Path], typer.Argument(help="Results that `meg eval --out` wrote", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the report")] = Path("report"),
    examples: Annotated[int, typer.Option(min=0, help="Examples of each kind of failure")] = 5,
) -> None:
    """Make one HTML report of one or several results of the same protocol."""
    from megedit.evaluate.report import load_result, write_report

    page = write_report([load_result(path) for path in results], out_dir, examples)
    out.print(f"The report is [bold]{plain(str(page))}[/].", highlight=False, soft_wrap=True)


def evaluate_and_print(
    model: MegModel,
    edits: EditSet,
    name: str,
    protocol: str = "paper",
    settings: EvaluationSettings | None = None,
    examples: int = 3,
) -> Evaluation:
    """Evaluate with progress, and print the table and some answers."""
    from megedit.cli.tables import examples_table, metrics_table
    from megedit.evaluate import EvaluationSettings, cases_of, evaluate, find_protocol
    from megedit.runtime.progress import Stages

    settings = settings or EvaluationSettings()
    total = len(cases_of(edits, find_protocol(protocol), settings))
    with Stages(err).stage("Evaluating", total) as advance:
        result = evaluate(model, edits, protocol, settings, name=name, progress=advance)
    out.print(metrics_table(result))
    if examples:
        out.print(examples_table(result, examples))
    return result


def _general(
    model: MegModel,
    tasks: str,
    limit: int | None,
    folder: Path | None,
    batch_size: int,
    seed: int,
    out_file: Path | None,
) -> None:
    from megedit.cli.tables import general_table
    from megedit.evaluate.lm_eval.general import general_ability

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    result = general_ability(model, names, limit=limit, task_folder=folder, batch_size=batch_size, seed=seed)
    out.print(general_table(result))
    if out_file is not None:
        write_json(result.to_json(), out_file, "Every answer")
