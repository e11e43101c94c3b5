"""The reasons for the defaults: collection, positions and generators, each varied alone.

    python -m benchmarks.ablations collection --data DIR
    python -m benchmarks.ablations positions  --data DIR
    python -m benchmarks.ablations generators --data DIR --adapter adapters/edit_10000_counterfact
    python -m benchmarks.ablations anchor     --data DIR --adapter adapters/edit_10000_counterfact
    python -m benchmarks.ablations anchor     --data DIR --adapter adapters/edit_20000_zsre_style --set zsre_style

The numbers are teacher-forced: percent of edits whose whole answer, full stop and end-of-text token included, is the
model's first choice. collection and positions use the collected neuron of an edit on other wordings, without router
and generator; generators learn all neurons of the adapter and are asked for a random sample of them, by the wording's
vector. anchor asks the adapter's own generator, with that vector moved more or less towards that of the nearest edit.
Writes results/NAME.json, or results/NAME_SET.json where --set is not the default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.common import BASE, write_result
from benchmarks.edits import load_set
from megedit.adapter.adapter import Adapter, load_adapter
from megedit.checks import ANSWERED_LEAD
from megedit.collect import CollectionSettings, answer_leads_of, collect, prepare_all
from megedit.edits import Edit
from megedit.generator import (
    PRESETS,
    GeneratorSettings,
    WeightGenerator,
    anchored,
    diffusion,
    train_generator,
)
from megedit.lm.backbone import Backbone
from megedit.lm.batches import Example, tokenize
from megedit.lm.loading import load_base
from megedit.lm.template import Template

COLLECTION: dict[str, dict[str, Any]] = {
    "default": {},
    "every edit 40 full steps": {"shared": 0, "rivals": 0, "margin": 1e9, "retries": 0},
    "nothing shared": {"shared": 0},
    "all tokens in the loss": {"rivals": 0},
    "margin 1": {"margin": 1.0},
    "margin 2": {"margin": 2.0},
    "margin 3": {"margin": 3.0},
    "margin 7": {"margin": 7.0},
    "no ending": {"ending": ""},
    "layer 16": {"layer": 16},
    "layer 24": {"layer": 24},
    "a third of the key's learning rate": {"key_lr": 0.005},
    "half of the value's learning rate": {"value_lr": 0.5},
}
POSITIONS: dict[str, dict[str, Any]] = {"answer": {"positions": "answer"}, "all": {"positions": "all"}}
REGRESSOR = "MLP regressor"
GENERATORS: dict[str, GeneratorSettings] = {
    "default": PRESETS["fast"].generator,
    "no trunk (adaLN only)": replace(PRESETS["fast"].generator, trunk_width=0),
    "two blocks, the trunk half as wide": replace(PRESETS["fast"].generator, depth=2, trunk_width=1024),
    "v-prediction": replace(PRESETS["fast"].generator, prediction="v_prediction"),
    "the query's vector alone": replace(PRESETS["fast"].generator, nearest_edit_share=0.0),
    "edits drawn evenly": replace(PRESETS["fast"].generator, rarity_power=0.0),
    "timesteps drawn evenly": replace(PRESETS["fast"].generator, timestep_bias=1.0),
    REGRESSOR: PRESETS["fast"].generator,
}


class Regressor(nn.Module):
    """An MLP from the condition straight to the weights, with the denoiser's signature."""

    def __init__(self, length: int, condition_size: int, settings: GeneratorSettings) -> None:
        super().__init__()
        hidden = settings.trunk_width
        self.mlp = nn.Sequential(
            nn.Linear(condition_size, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, length),
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The weights (B, L) of a condition (B, C), whatever the noise."""
        out: Tensor = self.mlp(condition)
        return out


class Bench:
    """The base model, and the edits with their clean and, where the set has such, noisy rephrases."""

    def __init__(self, base: str, data: Path, name: str, count: int, device: str = "cpu") -> None:
        self.model, self.tokenizer = load_base(base, device=device)
        chosen = load_set(data, name, count)
        edits = chosen.edits
        self.edits: list[Edit] = list(edits)
        self.queries = {
            "reliability": [edit.prompt for edit in edits],
            "clean": [edit.rephrases[0] for edit in edits],
        }
        if noisy := chosen.more_rephrases.get("noisy_rephrases"):
            self.queries["noisy"] = list(noisy.values())

    def examples(self, kind: str, template: Template, rows: Sequence[int] | None = None) -> list[Example]:
        chosen = range(len(self.edits)) if rows is None else rows
        edits = [replace(self.edits[i], prompt=self.queries[kind][i]) for i in chosen]
        return [tokenize(self.tokenizer, template, edit) for edit in edits]

    def collect(self, layer: int, settings: CollectionSettings, ending: str = ".") -> dict[str, float]:
        """One row: collect on the edits' own prompts, then use the neurons on the other wordings."""
        backbone = Backbone(self.model, layer)
        template = replace(Template.for_tokenizer(self.tokenizer), answer_suffix=ending)
        started = time.perf_counter()
        collected = collect(backbone, self.examples("reliability", template), settings, self.tokenizer.pad_token_id)
        seconds = time.perf_counter() - started
        row = {"reliability": percent(collected.leads > 0)}
        for kind in list(self.queries)[1:]:  # the edits' own queries come first
            batches = prepare_all(backbone, self.examples(kind, template), settings, self.tokenizer.pad_token_id)
            row[kind] = percent(answer_leads_of(backbone, batches, collected.weights) > 0)
        row["seconds_per_edit"] = round(seconds / len(self.edits), 4)
        print(row, flush=True)
        return row


class Check:
    """A random sample of an adapter's edits in all wordings, by which generators are compared."""

    def __init__(self, bench: Bench, adapter: Adapter, backbone: Backbone, count: int) -> None:
        active = torch.tensor([record.status == "active" for record in adapter.records]).nonzero()[:, 0]
        order = torch.randperm(len(active), generator=torch.Generator().manual_seed(1))
        rows = active[order[:count]].tolist()
        settings, pad_id = CollectionSettings(), bench.tokenizer.pad_token_id
        self.backbone = backbone
        self.batches = {
            kind: list(prepare_all(backbone, bench.examples(kind, adapter.config.template, rows), settings, pad_id))
            for kind in bench.queries
        }
        known = adapter.router.vectors
        self.vectors = {
            kind: adapter.encoder.encode([queries[i] for i in rows]) for kind, queries in bench.queries.items()
        }
        self.nearest = {kind: known[known.nearest(vectors)[1][:, 0]] for kind, vectors in self.vectors.items()}

    def leads(self, generator: WeightGenerator, kind: str) -> Tensor:
        conditions = anchored(self.vectors[kind], self.nearest[kind], generator.settings.nearest_edit_share)
        return answer_leads_of(self.backbone, self.batches[kind], generator.sample(conditions))

    def quality(self, generator: WeightGenerator) -> dict[str, float]:
        """Percent of the edits whose generated neuron answers, for each wording."""
        return {kind: percent(self.leads(generator, kind) > 0) for kind in self.batches}


def percent(mask: Tensor) -> float:
    return round(100 * float(mask.float().mean()), 1)


def generator_rows(bench: Bench, adapter: Adapter, steps: int, checked: int) -> list[dict[str, Any]]:
    """Train every generator on the same neurons and vectors; sample for all wordings."""
    backbone = Backbone(bench.model, adapter.config.layer)
    check = Check(bench, adapter, backbone, checked)
    weights = adapter.neurons(adapter.active)

    def answered(generator: WeightGenerator) -> float:
        return float((check.leads(generator, "reliability") >= ANSWERED_LEAD).float().mean())

    vectors = adapter.router.vectors.unpack()
    rows: list[dict[str, Any]] = []
    for name, chosen in GENERATORS.items():
        started = time.perf_counter()
        limited = replace(chosen, min_steps=steps, passes=0)
        with patch.object(diffusion, "DiT", Regressor) if name == REGRESSOR else nullcontext():
            generator, record = train_generator(weights, vectors, backbone.hidden_size, limited, 0, answered)
        row: dict[str, Any] = {"name": name, "seconds": round(time.perf_counter() - started, 1), "steps": record.steps}
        row |= check.quality(generator)
        row["parameters_millions"] = round(sum(p.numel() for p in generator.parameters()) / 1e6, 1)
        print(row, flush=True)
        rows.append(row)
    return rows


def anchor_rows(bench: Bench, adapter: Adapter, checked: int) -> list[dict[str, Any]]:
    """The adapter's own generator, with several shares of the nearest edit's vector in the condition."""
    check = Check(bench, adapter, Backbone(bench.model, adapter.config.layer), checked)
    rows: list[dict[str, Any]] = []
    for share in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0):
        adapter.generator.settings = replace(adapter.generator.settings, nearest_edit_share=share)
        rows.append({"anchor": share, **check.quality(adapter.generator)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collection", "positions", "generators", "anchor"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=("counterfact", "zsre_style"), default="counterfact")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--edits", type=int, default=256, help="collection, positions: the first so many edits")
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--adapter", type=Path, help="generators, anchor: an adapter of the first edits")
    parser.add_argument("--steps", type=int, default=1500, help="generators: training steps at most")
    parser.add_argument("--checked", type=int, default=512, help="generators, anchor: edits that they are asked for")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    if options.what in ("generators", "anchor"):
        adapter = load_adapter(options.adapter)
        bench = Bench(options.base, options.data, options.set, len(adapter.records))
        if options.what == "anchor":
            rows = anchor_rows(bench, adapter, options.checked)
        else:
            rows = generator_rows(bench, adapter, options.steps, options.checked)
    else:
        bench = Bench(options.base, options.data, options.set, options.edits)
        for name, variant in (COLLECTION if options.what == "collection" else POSITIONS).items():
            changed = dict(variant)
            layer, ending = changed.pop("layer", options.layer), changed.pop("ending", ".")
            settings = CollectionSettings(**changed)
            print(name, end=" ", flush=True)
            row = bench.collect(layer, settings, ending)
            rows.append({"name": name, **asdict(settings), "layer": layer, "ending": ending, **row})
    settings_used = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    settings_used |= {"data": None, "adapter": options.adapter.name if options.adapter else None}
    name = options.what + ("" if options.set == "counterfact" else f"_{options.set}")
    print(write_result(name, settings_used, {"rows": rows}))


if __name__ == "__main__":
    main()
