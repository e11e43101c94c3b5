"""The cost of an answer through the edited model: unfamiliar and familiar queries against the base model.

    python -m benchmarks.overhead --adapter adapters/edit_10000_counterfact --data DIR

Batches of 16 prompts, 20 new tokens, Hugging Face generate with and without edits on the same prompts, in turn; every
query is new to the process. Medians over the batches. Writes results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from transformers import BatchEncoding

from benchmarks.common import BASE, write_result
from benchmarks.make_shipped_data import records
from megedit import MegModel


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with nq_locality.jsonl")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--runs", type=int, default=15, help="batches of each kind, after one to warm up")
    options = parser.parse_args()

    model = MegModel.from_pretrained(options.adapter, base=options.base)
    length = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens, "do_sample": False}
    count = (options.runs + 1) * options.batch_size
    questions = [record["question"] for record in records(options.data / "nq_locality.jsonl")]
    unfamiliar = [q for q, r in zip(questions, model.route(questions), strict=True) if not r.familiar][:count]
    rephrases = [edit.rephrases[0] for edit in model.edits if edit.rephrases][: 2 * count]
    familiar = [q for q, r in zip(rephrases, model.route(rephrases), strict=True) if r.familiar][:count]

    def measure(queries: list[str]) -> tuple[float, float, float, float]:
        """Median seconds of the base and the edited model, of routing and of generating; timed in turn, batch after
        batch, so that a slower minute of the machine is one for all of them."""
        spent: list[list[float]] = []
        for first in range(0, len(queries), options.batch_size):
            batch = queries[first : first + options.batch_size]
            prompts = [model.format(query) for query in batch]
            inputs: BatchEncoding = model.tokenizer(prompts, return_tensors="pt", padding=True)
            vectors = model.adapter.encoder.encode(batch).to(model.device)
            with model.disable_edits():
                base = seconds(lambda inputs=inputs: model.generate(**inputs, **length))  # type: ignore[misc]
            edited = seconds(lambda inputs=inputs: model.generate(**inputs, **length))  # type: ignore[misc]
            routing = seconds(lambda batch=batch: model.route(batch))  # type: ignore[misc]
            generating = seconds(lambda vectors=vectors: model.adapter.generator.sample(vectors))  # type: ignore[misc]
            spent.append([base, edited, routing, generating])
        base, edited, routing, generating = (median(column[1:]) for column in zip(*spent, strict=True))
        return base, edited, routing, generating

    unfamiliar_base, unfamiliar_edited, _, _ = measure(unfamiliar)
    familiar_base, familiar_edited, routing, generating = measure(familiar)
    batches = [familiar[i : i + options.batch_size] for i in range(0, len(familiar), options.batch_size)]
    remembered = median(seconds(lambda batch=batch: model.neurons(batch)) for batch in batches)  # type: ignore[misc]
    results = {
        "base_seconds": round(unfamiliar_base, 4),
        "unfamiliar_seconds": round(unfamiliar_edited, 4),
        "unfamiliar_percent": round(100 * (unfamiliar_edited / unfamiliar_base - 1), 2),
        "familiar_base_seconds": round(familiar_base, 4),
        "familiar_seconds": round(familiar_edited, 4),
        "familiar_percent": round(100 * (familiar_edited / familiar_base - 1), 2),
        "routing_seconds": round(routing, 4),
        "generating_seconds": round(generating, 4),
        "remembered_seconds": round(remembered, 4),
        "batch_size": options.batch_size,
        "new_tokens": options.new_tokens,
        "runs": options.runs,
    }
    print(json.dumps(results, indent=1))
    print(write_result("overhead", {"adapter": options.adapter.name}, results))


if __name__ == "__main__":
    main()
