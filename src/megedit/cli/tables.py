"""Tables that the commands print: metrics, answers side by side, the content of an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megedit.adapter.card import router_line
from megedit.adapter.folder import find_adapter, read_config
from megedit.adapter.ledger import reading
from megedit.evaluate.metrics import answer_text
from megedit.evaluate.protocols import CONTRAST

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from megedit.evaluate import ContrastResult, ContrastVerdict, Evaluation, Measured, Verdict
    from megedit.evaluate.firing import Side
    from megedit.evaluate.lm_eval import GeneralResult
    from megedit.evaluate.statistics import Estimate

ROLES = {"reliability": "the edit", "generality": "a rephrase, never seen", "locality": "a neighbour"}


def metrics_table(result: Evaluation) -> Table:
    """The metrics of both models; of the edited one with its bootstrap interval, in which 95 of 100 would lie."""
    name, version = result.protocol["name"], result.protocol["version"]
    table = Table(title=f"{result.data['edits']} edits, protocol {name} {version}", title_justify="left")
    table.add_column("")
    for column in ("unedited", "edited", "95% interval", "asked"):
        table.add_column(column, justify="right")
    for metric in result.metrics:
        if metric.name == "score":
            table.add_section()
        if metric.edited or metric.unedited or metric.name == "score":
            table.add_row(*_row(metric, result))
    return table


def _row(metric: Measured, result: Evaluation) -> list[str]:
    low_high = f"{metric.edited.low:.1f} to {metric.edited.high:.1f}" if metric.edited else ""
    asked = str(metric.edited.count) if metric.edited and metric.name != "score" else ""
    label = metric.label if metric.unit == "%" else f"{metric.label}, {metric.unit}"
    return [label, _value(metric.unedited), f"[bold]{_value(metric.edited)}[/]", low_high, asked]


def examples_table(result: Evaluation, count: int) -> Table:
    """Questions with the unedited and the edited answer."""
    table = Table(show_lines=False, title="Answers", title_justify="left")
    for column in ("", "question", "unedited model", "edited model"):
        table.add_column(column, overflow="fold")
    for verdict in examples(result, count):
        if verdict.case.kind == "reliability" and table.rows:
            table.add_section()
        role = ROLES.get(verdict.case.kind, verdict.case.kind)
        answers = [
            answer_text(judged.answer) if judged and judged.answer else ""
            for judged in (verdict.unedited, verdict.edited)
        ]
        table.add_row(role, escape(verdict.case.query), escape(answers[0]), f"[bold]{escape(answers[1])}[/]")
    return table


def examples(result: Evaluation, count: int) -> Sequence[Verdict]:
    """The first verdict of each kind of a few edits, if possible of edits that have all kinds."""
    kinds = set(result.counts)
    by_edit: dict[str, dict[str, Verdict]] = {}
    for verdict in result.verdicts:
        by_edit.setdefault(verdict.case.edit, {}).setdefault(verdict.case.kind, verdict)
    complete = [rows for rows in by_edit.values() if set(rows) == kinds] or list(by_edit.values())
    return [verdict for rows in complete[:count] for verdict in rows.values()]


def contrast_table(result: ContrastResult) -> Table:
    """Recognised and false over all texts, then by kind, each with its bootstrap interval, in which 95 of 100 would
    lie."""
    from megedit.evaluate.firing import VERSION

    table = Table(title=f"{result.facts} facts, protocol {CONTRAST} {VERSION}", title_justify="left")
    table.add_column("")
    for column in ("%", "95% interval", "texts"):
        table.add_column(column, justify="right")
    table.add_row("[bold]recognised[/]", *_cells(result.recognised))
    table.add_row("[bold]false[/]", *_cells(result.false))
    for side, label in (("fire", "recognised"), ("not", "false")):
        table.add_section()
        for (of, kind), estimate in result.kinds.items():
            if of == side:
                table.add_row(f"{label}, {escape(kind)}", *_cells(estimate))
    return table


def failures_table(result: ContrastResult, count: int) -> Table:
    """Up to so many failures of each side: the text, the edit that fired and its score."""
    from megedit.evaluate.report.failures import spread

    table = Table(title="Failures", title_justify="left")
    for column in ("", "text", "fired"):
        table.add_column(column, overflow="fold")
    table.add_column("score", justify="right")
    sides: tuple[tuple[Side, str], ...] = (("fire", "missed"), ("not", "false"))
    for side, label in sides:
        table.add_section()
        for verdict in spread(result.failures(side), count):
            table.add_row(*_failure(result, verdict, label))
    return table


def _failure(result: ContrastResult, verdict: ContrastVerdict, label: str) -> list[str]:
    from megedit.evaluate.report.failures import shortened

    fired = verdict.fired
    what = "nothing" if fired.edit is None else escape(result.edits[fired.edit])
    score = "" if fired.score is None else f"{fired.score:.2f}"
    return [f"{label}, {escape(verdict.case.kind)}", escape(shortened(verdict.case.query)), what, score]


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["-", "", "0"]
    return [f"[bold]{estimate.value:.1f}[/]", f"{estimate.low:.1f} to {estimate.high:.1f}", f"{estimate.count:,}"]


def general_table(result: GeneralResult) -> Table:
    """General ability: every task and metric of both models, in the harness's own units."""
    table = Table(title=f"General ability, lm-evaluation-harness {result.harness_version}", title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for column in ("unedited", "edited", "asked", "let through"):
        table.add_column(column, justify="right")
    for task in result.tasks:
        for metric in task.metrics:
            name = metric.metric if metric.filter == "none" else f"{metric.metric}, {metric.filter}"
            values = (
                _with_error(metric.unedited, metric.unedited_stderr),
                f"[bold]{_with_error(metric.edited, metric.edited_stderr)}[/]",
            )
            table.add_row(escape(task.task), escape(name), *values, str(task.samples), f"{task.let_through:.1%}")
    return table


def print_adapter(name: str, out: Console) -> None:
    """Print the content of an adapter, without loading its models."""
    folder = find_adapter(name)
    config = read_config(folder)
    with reading(folder) as ledger:
        counts, log = ledger.counts(), ledger.operations()
        collected = sum(not record.generated for record in ledger.records(status="active"))
    generator = config.settings.generator
    rows = {
        "base model": config.base,
        "fingerprint": config.base_fingerprint[:16],
        "layer": f"{config.layer}: {config.provenance.get('layer', 'as it was set')}",
        "neuron acts on": "the last prompt token and the answer" if config.positions == "answer" else "all positions",
        "template": json.dumps(config.template.text, ensure_ascii=False),
        "edits": ", ".join(f"{count:,} {status}" for status, count in counts.items()),
        "answered by": f"generated neurons {counts['active'] - collected:,}, collected ones {collected:,}",
        "revision": f"{log[-1].revision}: {log[-1].kind}, {log[-1].time} UTC; fitted to {log[0].source}",
        "router": router_line(config),
        "generator": f"{generator.prediction} prediction, {generator.sample_steps} sampling steps",
        "size": f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.0f} MB",
        "made with": ", ".join(f"{name} {number}" for name, number in config.provenance.get("versions", {}).items()),
    }
    table = Table(show_header=False, title=escape(name), title_justify="left")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table)


def _value(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.1f}"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
