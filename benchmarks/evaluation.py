"""The cost of an evaluation, and the metrics of every protocol for the same adapter.

    python -m benchmarks.evaluation --data DIR --adapter adapters/edit_10000_counterfact

DIR holds counterfact.jsonl, from which the adapter was made (edits.py). The protocol `paper` is timed as it is in
edits.py: one rephrase and one neighbourhood prompt an edit. The others, and the perturbed queries, are asked about
the first --edits only, with one neighbourhood prompt an edit: the adapter was made with that one, and the shipped
pseudo-knowledge holds some of the others. Writes results/evaluation.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import BASE, write_result
from benchmarks.edits import load_set
from megedit import MegModel, read_edits
from megedit.edits import EditSet
from megedit.evaluate import Evaluation, EvaluationSettings, cases_of, evaluate, find_protocol
from megedit.evaluate.perturb import PERTURBATIONS
from megedit.runtime.progress import Stages, peak_memory

ROWS: dict[str, tuple[str, EvaluationSettings]] = {
    "paper, all rephrases": ("paper", EvaluationSettings(robustness=tuple(PERTURBATIONS))),
    "wild": ("wild", EvaluationSettings()),
    "counterfact": ("counterfact", EvaluationSettings(neighbours=1)),
    "counterfact, adapter's template": ("counterfact", EvaluationSettings(neighbours=1, template="adapter")),
    "cloze": ("cloze", EvaluationSettings()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--edits", type=int, default=100, help="edits that the other protocols ask about")
    options = parser.parse_args()

    model = MegModel.from_pretrained(options.adapter, base=options.base)
    one_of_each = load_set(options.data, "counterfact", len(model.edits)).edits
    timed = measured(model, one_of_each, "paper", EvaluationSettings(rephrases=1))
    count = len(one_of_each)
    results: dict[str, Any] = {
        "edits": count,
        "questions": len(timed.verdicts),
        "seconds": round(timed.seconds, 1),
        **peak_memory(),
        "rows": {},
    }
    everything = read_edits(options.data / "counterfact.jsonl", limit=count, on_conflict="first")
    few = first(everything, options.edits)
    for name, (protocol, settings) in ROWS.items():
        result = measured(model, few, protocol, settings)
        results["rows"][name] = {
            "protocol": result.protocol,
            "questions": len(result.verdicts),
            "seconds": round(result.seconds, 1),
            "metrics": [asdict(metric) for metric in result.metrics],
        }
    settings_used = {"base": options.base, "adapter": options.adapter.name, "edits": options.edits}
    print(write_result("evaluation", settings_used, results))


def measured(model: MegModel, edits: EditSet, protocol: str, settings: EvaluationSettings) -> Evaluation:
    total = len(cases_of(edits, find_protocol(protocol), settings))
    with Stages().stage(f"Evaluating, {protocol}", total) as advance:
        result = evaluate(model, edits, protocol, settings, resume=False, progress=advance)
    print({metric.name: metric.edited.value for metric in result.metrics if metric.edited}, flush=True)
    return result


def first(edits: EditSet, count: int) -> EditSet:
    """The first edits and the questions that belong to them."""
    chosen = edits.edits[:count]
    ids = {edit.id for edit in chosen}
    return replace(edits, edits=chosen, questions=tuple(q for q in edits.questions if q.group in ids))


if __name__ == "__main__":
    main()
