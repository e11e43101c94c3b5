"""1,000 edits in one batch: quality and cost of the whole chain.

    python benchmarks/edit_1000.py --data DIR --set counterfact   # or zsre_style, counterfact-raw

DIR holds counterfact.jsonl, zsre_style.jsonl and nq_locality.jsonl. The first 1,000 records are edited (second
targets of a (subject, relation) pair dropped); encoder and router see only the shipped pseudo-knowledge, which comes
from the end of those files, with whatever belongs to an edited subject taken out. Writes results/edit_1000_SET.json
and, with --verdicts FILE, every question and answer. The set counterfact-raw is asked without template, by the protocol
`cloze`; what its rule says of free answers stands under the names of AG.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import BASE, write_result
from megedit import FitSettings, MegModel, fit, read_edits
from megedit.edits import EditSet
from megedit.evaluate import EvaluationSettings, Measured, Verdict, cases_of, evaluate, find_protocol
from megedit.evaluate.evaluation import summarise
from megedit.progress import Stages, peak_memory_mb

RAW = "counterfact-raw"


def load_edits(data: Path, name: str, limit: int) -> tuple[EditSet, list[str]]:
    """The edits with one rephrase and one neighbour each, and the rephrases behind a noise sentence (may be empty)."""
    if name in ("counterfact", RAW):
        edits = read_edits(data / "counterfact.jsonl", limit=limit, on_conflict="first")
        records = {str(record["case_id"]): record for record in read_jsonl(data / "counterfact.jsonl")}
        noisy = [records[edit.id]["paraphrase_prompts"][0] for edit in edits]
        chosen = [
            replace(edit, rephrases=(records[edit.id]["x_paraphrase_clean"][0],), neighbours=edit.neighbours[:1])
            for edit in edits
        ]
    else:
        edits = read_edits(data / "zsre_style.jsonl", limit=limit, on_conflict="first")
        questions = [record["question"] for record in read_jsonl(data / "nq_locality.jsonl")][: len(edits)]
        chosen = [
            replace(edit, rephrases=edit.rephrases[:1], neighbours=(question,))
            for edit, question in zip(edits, questions, strict=True)
        ]
        noisy = []
    return replace(edits, edits=tuple(chosen)), noisy


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=("counterfact", "zsre_style", RAW), default="counterfact")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None, help="adapter folder [default: adapters/edit_1000_SET]")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verdicts", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path("adapters") / f"edit_1000_{options.set}"

    edits, noisy = load_edits(options.data, options.set, options.edits)
    settings = FitSettings(seed=options.seed, template="raw" if options.set == RAW else "auto")
    protocol, evaluation = "cloze" if options.set == RAW else "paper", EvaluationSettings()
    stages = Stages()
    started = time.perf_counter()
    adapter = fit(options.base, edits, out, settings, overwrite=True, stages=stages)
    fit_seconds, fit_memory = time.perf_counter() - started, peak_memory_mb()
    model = MegModel.from_pretrained(out, base=options.base)
    asked = with_rephrases(edits, noisy)
    with stages.stage("Evaluating", len(cases_of(asked, find_protocol(protocol), evaluation))) as advance:
        result = evaluate(model, asked, protocol, evaluation, resume=False, progress=advance)
    one, more = first_rephrases(result.verdicts)
    measured = measure(one, protocol)
    results: dict[str, Any] = {
        "edited": {metric.name: metric.edited and metric.edited.value for metric in measured},
        "unedited": {metric.name: metric.unedited and metric.unedited.value for metric in measured},
        "intervals": {metric.name: [metric.edited.low, metric.edited.high] for metric in measured if metric.edited},
    }
    if noisy:
        results["noisy_rephrases"] = {m.name: m.edited.value for m in measure(more, protocol) if m.edited}
    collection = sum(stages.costs[name]["seconds"] for name in ("Running the frozen layers", "Collecting neurons"))
    results |= {
        "counts": result.counts,
        "failed": [record.edit.id for record in adapter.records if record.status == "failed"],
        "generated_uncertain": [record.edit.id for record in adapter.records if not record.generated],
        "fit_seconds": round(fit_seconds, 1),
        "fit_peak_memory_mb": round(fit_memory, 1),
        "collection_seconds_per_edit": round(collection / len(edits), 4),
        "mean_collection_steps": sum(record.steps for record in adapter.records) / len(adapter.records),
        "adapter_mb": round(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6, 1),
        "stages": stages.costs,
        "calibration": {k: v for k, v in adapter.config.calibration.to_json().items() if k != "curve"},
        "calibration_curve": adapter.config.calibration.curve,
        "generator_training": adapter.config.record["generator_training"],
    }
    name = (
        f"edit_1000_{options.set.replace('-', '_')}" if options.edits == 1000 else f"edit_{options.edits}_{options.set}"
    )
    path = write_result(name, {"fit": asdict(settings), "evaluation": result.protocol, "base": options.base}, results)
    if options.verdicts:
        options.verdicts.write_text(json.dumps(result.to_json(), ensure_ascii=False, indent=1), "utf-8")
    print(
        json.dumps(
            {k: results[k] for k in ("edited", "unedited", "fit_seconds", "collection_seconds_per_edit")}, indent=1
        )
    )
    print(path)


def with_rephrases(edits: EditSet, more: list[str]) -> EditSet:
    """Each edit with one more rephrase, where there are any."""
    pairs = zip(edits, more, strict=True) if more else ()
    return replace(edits, edits=tuple(replace(e, rephrases=(*e.rephrases, text)) for e, text in pairs) or edits.edits)


def first_rephrases(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts without further rephrases of an edit than its first, and the further ones."""
    one: list[Verdict] = []
    more: list[Verdict] = []
    seen: set[str] = set()
    for verdict in verdicts:
        is_rephrase = verdict.case.kind == "generality"
        (more if is_rephrase and verdict.case.edit in seen else one).append(verdict)
        if is_rephrase:
            seen.add(verdict.case.edit)
    return one, more


def measure(verdicts: Sequence[Verdict], protocol: str) -> list[Measured]:
    """The metrics of some of the verdicts; what the protocol `cloze` says of free answers under the names of AG."""
    rules = find_protocol(protocol)
    return [
        replace(metric, name=metric.name.replace("_begins", "_ag"))
        for metric in summarise(verdicts, rules.metrics, rules.score)
    ]


if __name__ == "__main__":
    main()
