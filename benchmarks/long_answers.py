"""Long answers: edits of about a hundred tokens each, by the protocol `long` and word for word.

    python -m benchmarks.long_answers --data DIR --edits 600

DIR holds unke.jsonl (UnKEBench, arXiv 2405.15349): questions with answers of several sentences, a paraphrase of each,
and questions about parts of the answer. Writes results/long_answers.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from benchmarks.common import BASE, base_name, on_device, suffix, write_result
from benchmarks.edits import fit_or_load
from benchmarks.evaluation import measured
from megedit import MegModel, read_edits
from megedit.evaluate import EvaluationSettings
from megedit.evaluate.result import Verdict
from megedit.settings import FitSettings


def main() -> None:
    """Fit, ask, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=600)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    edits = read_edits(options.data / "unke.jsonl", limit=options.edits, on_conflict="first")
    name = f"long_answers{suffix(options.base)}{on_device(options.device)}"
    out = Path("adapters") / f"{name}_{options.edits}"
    spent = fit_or_load(options.base, edits, out, FitSettings(seed=options.seed), options.device)
    model = MegModel.from_pretrained(out, base=options.base, device=options.device)
    found = measured(model, edits, "long", EvaluationSettings(seed=options.seed))
    results = {
        "metrics": [asdict(metric) for metric in found.metrics],
        "word_for_word": {kind: word_for_word(found.verdicts, kind) for kind in ("reliability", "generality")},
        "tokens": round(fmean(len(model.tokenizer(edit.target).input_ids) for edit in edits), 1),
        "spent": spent,
    }
    settings = {"edits": len(edits), "base": base_name(options.base), "seed": options.seed}
    print(write_result(name, settings, results))


def word_for_word(verdicts: Sequence[Verdict], kind: str) -> float:
    """The share of answers that are the whole target, in percent."""
    right = [(v.edited.answer or "").strip() in v.case.answers for v in verdicts if v.case.kind == kind]
    return round(100 * fmean(right), 2)


if __name__ == "__main__":
    main()
