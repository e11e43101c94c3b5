"""What the commands print: the table of metrics, answers side by side, the content of an adapter."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megedit.adapter import find_adapter, load_records, read_config
from megedit.edits import Edit
from megedit.errors import MegError
from megedit.evaluate import Evaluation, EvaluationSettings, Metrics, evaluate, examples
from megedit.model import MegModel
from megedit.progress import Stages

ROLES = {"reliability": "the edit", "generality": "a rephrase, never seen", "locality": "a neighbour"}


def evaluate_and_print(
    model: MegModel,
    edits: Sequence[Edit],
    out: Console,
    err: Console,
    shown: int,
    batch_size: int,
    out_file: Path | None,
) -> Evaluation:
    """Evaluate, print the table and some answers, and write all verdicts to `out_file`."""
    if out_file is not None and not out_file.parent.is_dir():
        raise MegError(f"The folder of {out_file} does not exist; make it or choose another place for the result.")
    if out_file is not None and out_file.is_dir():
        raise MegError(f"{out_file} is a folder; name a file in it for the result.")
    with Stages(err).stage("Evaluating", sum(1 + bool(e.rephrases) + bool(e.neighbours) for e in edits)) as advance:
        result = evaluate(model, edits, EvaluationSettings(batch_size=batch_size), advance)
    out.print(metrics_table(result))
    if shown:
        out.print(examples_table(result, shown))
    if out_file is not None:
        partial = out_file.with_name(out_file.name + ".partial")
        try:
            partial.write_text(json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n", "utf-8")
            os.replace(partial, out_file)
        except OSError as error:
            raise MegError(f"{out_file} could not be written: {error}.") from error
        out.print(f"Every answer is in [bold]{escape(str(out_file))}[/].", highlight=False, soft_wrap=True)
    return result


def metrics_table(result: Evaluation) -> Table:
    """Metrics in percent: unedited and edited model, AG and TF."""
    table = Table(
        title=f"{result.counts['reliability']} edits, protocol {result.settings.protocol}",
        title_justify="left",
    )
    table.add_column("")
    for model in ("unedited", "edited"):
        for measure in ("AG", "TF"):
            table.add_column(f"{model}\n{measure}", justify="right")
    for kind in ("reliability", "generality", "locality"):
        cells = [
            _percent(getattr(metrics, f"{kind}_{measure}"))
            for metrics in (result.unedited, result.edited)
            for measure in ("ag", "tf")
        ]
        table.add_row(f"{kind.capitalize()} ({result.counts[kind]})", *cells)
    table.add_section()
    table.add_row("Score", _score(result.unedited), "", f"[bold]{_score(result.edited)}[/]", "")
    return table


def examples_table(result: Evaluation, count: int) -> Table:
    """Questions with the unedited and the edited answer."""
    table = Table(show_lines=False, title="Answers", title_justify="left")
    for column in ("", "question", "unedited model", "edited model"):
        table.add_column(column, overflow="fold")
    for case, base, edited in examples(result, count):
        if case.kind == "reliability" and table.rows:
            table.add_section()
        table.add_row(ROLES[case.kind], escape(case.query), escape(base), f"[bold]{escape(edited)}[/]")
    return table


def print_adapter(name: str, out: Console, with_edits: bool) -> None:
    """What an adapter holds, without loading the models."""
    folder = find_adapter(name)
    config, records = read_config(folder), load_records(folder)
    calibration = config.calibration
    failed = [record.edit.id for record in records if record.status == "failed"]
    uncertain = [record.edit.id for record in records if record.status == "active" and not record.generated]
    rows = {
        "base model": config.base,
        "fingerprint": config.base_fingerprint[:16],
        "layer": str(config.layer),
        "neuron acts on": "the last prompt token and the answer" if config.span == "answer" else "all positions",
        "template": json.dumps(config.template.text, ensure_ascii=False),
        "edits": f"{len(records)} from {config.record.get('source', 'Python')}",
        "failed": ", ".join(failed) or "none",
        "generated neuron uncertain": ", ".join(uncertain) or "none",
        "router": f"{calibration.rule}: {calibration.true_positive_rate:.1%} of held-out rephrases recognised, "
        f"{calibration.false_positive_rate:.1%} of other queries let through",
        "generator": f"{config.generator.denoiser}, {config.generator.sample_steps} sampling steps",
        "size": f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.0f} MB",
        "made with": ", ".join(f"{name} {number}" for name, number in config.record.get("versions", {}).items()),
    }
    table = Table(show_header=False, title=escape(name), title_justify="left")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table)
    if with_edits:
        listing = Table()
        for column in ("id", "status", "prompt", "target"):
            listing.add_column(column, overflow="fold")
        for record in records:
            listing.add_row(
                *(escape(text) for text in (record.edit.id, record.status, record.edit.prompt, record.edit.target))
            )
        out.print(listing)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _score(metrics: Metrics) -> str:
    return _percent(metrics.score)
