"""The commands `meg eval`, `meg general` and `meg report`."""

from __future__ import annotations

from collections.abc import Sequence
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
from megedit.edits.contrast import ContrastFact
from megedit.edits.public import PUBLIC
from megedit.errors import MegError
from megedit.evaluate.perturb import PERTURBATIONS
from megedit.evaluate.protocols import CONTRAST, PROTOCOL_NAMES, TemplateKind

if TYPE_CHECKING:
    from megedit.evaluate import ContrastResult, Evaluation, EvaluationSettings
    from megedit.model import MegModel

DataOption = Annotated[
    str | None,
    typer.Option(
        help=f"Edits with rephrases and neighbours: a file, or {', '.join(PUBLIC)} from the Hugging Face Hub "
        "[default: those in the adapter]; for contrast, a file of facts with contrast texts (docs/contrast.md)"
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
    protocol: Annotated[str, typer.Option(help=f"One of {', '.join(PROTOCOL_NAMES)}")] = "paper",
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
    examples: Annotated[int, typer.Option(min=0, help="Edits to show with their answers; for contrast, failures")] = 3,
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

    def load() -> MegModel:
        return MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)

    check_places(out_file, report_dir)
    result: ContrastResult | Evaluation
    if protocol == CONTRAST:
        facts = contrast_facts(
            data, rephrases=rephrases, neighbours=neighbours, robustness=robustness, template=template
        )
        result = contrast_and_print(load(), facts, str(data), adapter, limit, batch_size, seed, examples)
    else:
        find_protocol(protocol)
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
        model = load()
        edits = known_edits(model.adapter, given) if given else adapter_edits(model.adapter, adapter, limit)
        tell_dropped(edits)
        result = evaluate_and_print(model, edits, adapter, protocol, settings, examples)
    _keep(result.to_json(), out_file, report_dir)


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


def _keep(result: dict[str, object], file: Path | None, folder: Path | None) -> None:
    """Write a result to a file, and as a report to a folder, where they are asked for."""
    if file is not None:
        write_result(result, file, "Every answer")
    if folder is not None:
        _write_report([result], folder)
        write_result(result, folder / "result.json", "Every answer")


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


def contrast_facts(data: str | None, **options: object) -> list[ContrastFact]:
    """The facts of a file for the protocol `contrast`.

    Raises MegError without a file, for a file that cannot be used, and for options that this protocol does not have.
    """
    from megedit.edits.contrast import read_contrast

    if data is None:
        raise MegError(
            "The protocol contrast needs facts with contrast texts; name their file with --data (docs/contrast.md)."
        )
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise MegError(f"The protocol contrast asks the texts of its file as they are; leave out {', '.join(given)}.")
    return read_contrast(data)


def contrast_and_print(
    model: MegModel,
    facts: Sequence[ContrastFact],
    source: str,
    name: str,
    limit: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    examples: int = 3,
) -> ContrastResult:
    """Measure by the protocol `contrast` with progress, and print the table, some failures and what is left out."""
    from megedit.cli.tables import contrast_table, failures_table
    from megedit.edits.contrast import texts
    from megedit.evaluate import contrast
    from megedit.runtime.progress import Stages

    total = sum(1 for fact in facts[:limit] for side in (fact.fire, fact.other) for _ in texts(side))
    with Stages(err).stage("Routing", total) as advance:
        result = contrast(
            model,
            facts,
            source=source,
            name=name,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            progress=advance,
        )
    out.print(contrast_table(result))
    if result.allowed is not None and result.false is not None:
        out.print(f"Set to let {result.allowed:.1f} % of near misses fire, reached {result.false.value:.1f} %.")
    if left_out := ", ".join(f"{count:,} ({reason})" for reason, count in result.left_out.items() if count):
        out.print(f"Left out: {left_out}.", highlight=False)
    if examples and (failures := failures_table(result, examples)).rows:
        out.print(failures)
    return result
