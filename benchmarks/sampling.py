"""The number of DDIM steps varied: the strict evaluation of one adapter with each number of steps.

    python -m benchmarks.sampling --data DIR --adapter adapters/edit_10000_counterfact --set counterfact --asked 500

The same questions every time, those of the headline and the rephrases behind a noise sentence, of edits drawn at random
from the adapter. Writes results/sampling.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import BASE, write_result
from benchmarks.edits import load_set, measure, with_more
from megedit import MegModel
from megedit.adapter.adapter import load_adapter
from megedit.evaluate import EvaluationSettings, evaluate
from megedit.lm.loading import load_base

STEPS = (50, 20, 5, 3, 2, 1)
BATCH, RUNS = 16, 15  # queries sampled at a time, and how often, for the time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--set", choices=("counterfact", "zsre_style", "zsre"), default="counterfact")
    parser.add_argument("--asked", type=int, default=500, help="edits drawn at random to be asked")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    base, tokenizer = load_base(options.base)
    adapter = load_adapter(options.adapter)
    generator, vectors = adapter.generator, adapter.router.vectors.unpack()
    chosen = load_set(options.data, options.set, len(adapter.records))
    asked = with_more(chosen, options.asked, options.seed)
    rows: list[dict[str, Any]] = []
    for steps in STEPS:
        generator.settings = replace(generator.settings, sample_steps=steps)
        model = MegModel(base, tokenizer, adapter)  # a new one: neurons are remembered by query
        result = evaluate(model, asked, settings=EvaluationSettings(neighbours=1), resume=False)
        model.detach()
        spent = []
        for run in range(RUNS):
            started = time.perf_counter()
            generator.sample(vectors[run * BATCH : (run + 1) * BATCH])
            spent.append(time.perf_counter() - started)
        metrics = {metric.name: metric.edited.value for metric in measure(result.verdicts, "paper") if metric.edited}
        rows.append({"steps": steps, "sampling_seconds": round(median(spent), 5), **metrics})
        print(rows[-1], flush=True)
    settings = {"adapter": options.adapter.name, "asked": len(asked), "batch_size": BATCH, "seed": options.seed}
    print(write_result("sampling", settings, {"rows": rows}))


if __name__ == "__main__":
    main()
