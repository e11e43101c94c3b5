"""The commands `meg eval`, `meg general` and `meg report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    tell_dropped,
    torch_dtype,
    write_result,
)
from megedit.edits import EditSet, load_edits
from megedit.edits.public import PUBLIC
from megedit.evaluate.perturb import PERTURBATIONS
from megedit.evaluate.protocols import PROTOCOLS, TemplateKind

if TYPE_CHECKING:
    from megedit.evaluate import Evaluation, EvaluationSettings
    from megedit.model import MegModel

DataOption = Annotated[
    str | None,
    typer.Option(
        help=f"Edits with rephrases and neighbours: a file, or {', '.join(PUBLIC)} from the Hugging Face Hub "
        "[default: those in the adapter]"
    ),
]
RobustnessOption = Annotated[
    str | None,
    typer.Option(help=f"Also ask the edits' queries perturbed: all, or names of {', '.join(PERTURBATIONS)}"),
]
TemplateOption = Annotated[
    TemplateKind | None,
    typer.Option(help="The adapter's template, the model's chat template alone, or none [default: the protocol's]"),
]
ResultOption = Annotated[
    Path | None, typer.Option("--out", help="Write every question, answer and verdict to this JSON file")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions asked at a time")]


def evaluate(
    adapter: AdapterName,
    data: DataOption = None,
    protocol: Annotated[str, typer.Option(help=f"One of {', '.join(PROTOCOLS)}")] = "paper",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many edits")] = None,
    rephrases: Annotated[int | None, typer.Option(min=0, help="Rephrases an edit [default: all]")] = None,
    neighbours: Annotated[
        int | None, typer.Option(min=0, help="Neighbourhood prompts an edit [default: the protocol's]")
    ] = None,
    robustness: RobustnessOption = None,
    template: TemplateOption = None,
    out_file: ResultOption = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report and the JSON file to this folder")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Edits to show with their answers")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of perturbations and bootstrap")] = 0,
    base: MovedBase = None,
    batch_size: BatchOption = 128,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Measure an adapter by a named protocol, the unedited model beside it.

    An interrupted evaluation goes on when the same command is given again.
    """
    from megedit.evaluate import EvaluationSettings, find_protocol
    from megedit.evaluate.api import adapter_edits, known_edits
    from megedit.model import MegModel

    find_protocol(protocol)
    check_places(out_file, report_dir)
    names = tuple(PERTURBATIONS) if robustness == "all" else tuple(filter(None, (robustness or "").split(",")))
    settings = EvaluationSettings(
        rephrases=rephrases,
        neighbours=neighbours,
        robustness=names,
        template=template,
        batch_size=batch_size,
        seed=seed,
    )
    given = load_edits(data, limit=limit, on_conflict="first") if data else None
    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    edits = known_edits(model.adapter, given) if given else adapter_edits(model.adapter, adapter, limit)
    tell_dropped(edits)
    result = evaluate_and_print(model, edits, adapter, protocol, settings, examples).to_json()
    if out_file is not None:
        write_result(result, out_file, "Every answer")
    if report_dir is not None:
        _write_report([result], report_dir)
        write_result(result, report_dir / "result.json", "Every answer")


def general(
    adapter: AdapterName,
    tasks: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness, such as piqa,arc_easy", show_default=False)
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents of each task")] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question [default: the task's own number]")
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with tasks of your own, used offline")] = None,
    out_file: ResultOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of examples and of sampling")] = 0,
    base: MovedBase = None,
    batch_size: BatchOption = 16,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Measure general ability: tasks of lm-evaluation-harness, on the edited and on the unedited model."""
    from megedit.cli.tables import general_table
    from megedit.evaluate.lm_eval.general import check_harness, general_ability
    from megedit.model import MegModel

    check_harness()
    check_places(out_file)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    result = general_ability(
        model, names, limit=limit, num_fewshot=fewshot, task_folder=task_folder, batch_size=batch_size, seed=seed
    )
    out.print(general_table(result))
    if out_file is not None:
        write_result(result.to_json(), out_file, "Every value")


def report(
    results: Annotated[list[Path], typer.Argument(help="Results that `meg eval --out` wrote", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the report")] = Path("report"),
    examples: Annotated[int, typer.Option(min=0, help="Examples of each kind of failure")] = 5,
) -> None:
    """Make one HTML report of one or several results of the same protocol."""
    from megedit.evaluate.report import load_result

    _write_report([load_result(path) for path in results], out_dir, examples)


def _write_report(results: list[dict[str, object]], folder: Path, examples: int = 5) -> None:
    from megedit.evaluate.report import write_report

    page = write_report(results, folder, examples)
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
