"""The paper's own recipe beside ours: what each part costs and reaches on the same machine, edits and neurons.

    python -m benchmarks.recipe --data DIR --adapter adapters/edit_10000_counterfact

Collection: one edit at a time, a fixed number of steps, the neuron on all positions, the loss over the whole
vocabulary. (The layers below the neuron run once an edit here, at every step in the published code: its real cost is
higher.) Generator: DiT-B/2 with adaLN conditioning only, v-prediction, 50 DDIM steps; it and ours learn the neurons of
the adapter for the same time. Both are checked on the same edits, teacher-forced, the whole answer with its end.
Writes results/recipe.json, on a GPU results/recipe_cuda.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablations import Bench, Check, percent
from benchmarks.common import BASE, on_device, write_result
from megedit.adapter.adapter import load_adapter
from megedit.collect import CollectionSettings, collect
from megedit.generator import PRESETS, GeneratorSettings, WeightGenerator, train_generator
from megedit.lm.backbone import Backbone

RECIPES: dict[str, tuple[CollectionSettings, GeneratorSettings]] = {
    "paper": (
        CollectionSettings(positions="all", batch_size=1, shared=0, rivals=0, margin=1e9, steps=40, retries=0),
        PRESETS["paper"].generator,
    ),
    "ours": (CollectionSettings(), PRESETS["fast"].generator),
}
TIMED = 10  # training steps from which the time of one is estimated


def train_for(
    seconds: float, settings: GeneratorSettings, weights: torch.Tensor, vectors: torch.Tensor, hidden_size: int
) -> tuple[WeightGenerator, dict[str, Any]]:
    """Train a generator for about this time, on a schedule that ends there."""

    def train(steps: int) -> tuple[WeightGenerator, float]:
        decay = min(settings.ema, max(0.0, 1 - 10 / steps))  # an average over a part of the training
        limited = replace(settings, min_steps=steps, passes=0, check_every=steps, ema=decay)
        started = time.perf_counter()
        generator, _ = train_generator(weights, vectors, hidden_size, limited, 0, lambda generator: 0.0)
        return generator, time.perf_counter() - started

    train(1)  # the first run of all is slower
    setting_up, timed = (train(count)[1] for count in (1, 1 + TIMED))
    steps = max(TIMED, round(TIMED * seconds / (timed - setting_up)))
    generator, spent = train(steps)
    return generator, {"training_steps": steps, "training_seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="an adapter of the first CounterFact edits")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--edits", type=int, default=48, help="edits that the paper's collection is timed on")
    parser.add_argument("--checked", type=int, default=256, help="edits that the generators are checked on")
    parser.add_argument("--minutes", type=float, default=10, help="training time of each generator")
    parser.add_argument("--queries", type=int, default=16, help="queries whose neurons are sampled together")
    options = parser.parse_args()

    adapter = load_adapter(options.adapter, options.device)
    bench = Bench(options.base, options.data, "counterfact", len(adapter.records), options.device)
    backbone, pad_id = Backbone(bench.model, adapter.config.layer), bench.tokenizer.pad_token_id
    check = Check(bench, adapter, backbone, options.checked)
    active = torch.tensor([record.status == "active" for record in adapter.records]).nonzero()[:, 0]
    rows: list[dict[str, Any]] = []
    for name, (collection, preset) in RECIPES.items():
        count = len(active) if collection.batch_size > 1 else options.edits
        spread = active[torch.linspace(0, len(active) - 1, count).long()].tolist()
        examples = bench.examples("reliability", adapter.config.template, spread)
        started = time.perf_counter()
        collected = collect(backbone, examples, collection, pad_id)
        row: dict[str, Any] = {
            "name": name,
            "collected": count,
            "collection_seconds_per_edit": round((time.perf_counter() - started) / count, 4),
            "collection_reliability": percent(collected.leads > 0),
        }
        print(row, flush=True)
        generator, training = train_for(
            60 * options.minutes,
            preset,
            adapter.neurons(adapter.active).to(backbone.device),
            adapter.router.vectors.unpack(),
            backbone.hidden_size,
        )
        row |= training | {"parameters_millions": round(sum(p.numel() for p in generator.parameters()) / 1e6, 1)}
        row |= check.quality(generator)
        started = time.perf_counter()
        generator.sample(check.vectors["clean"][: options.queries])
        row |= {"sample_steps": preset.sample_steps, "sampling_seconds": round(time.perf_counter() - started, 4)}
        print(row, flush=True)
        rows.append(row)
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    kept |= {"data": None, "adapter": options.adapter.name}
    print(write_result(f"recipe{on_device(options.device)}", kept, {"rows": rows}))


if __name__ == "__main__":
    main()
