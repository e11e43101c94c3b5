"""The life of an edit in an adapter of many: what adding, removing and consolidating costs, and does to the rest.

    python -m benchmarks.life --data DIR --adapter adapters/edit_10000_counterfact --new 100 --asked 500

Works on a copy of the adapter. The new facts are the next ones of the data set whose questions the adapter was not
tuned on. Each step is a process of its own, timed from its start, as a user would call `meg`; the strict evaluation of
a sample of the old edits, of the new and of the removed ones stands before and after. Also timed: list, search and the
search for the nearest edit among 100,000 made-up edits. Writes results/life.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from benchmarks.common import BASE, write_result
from benchmarks.edits import load_set, measure
from megedit import Edit, EditSet, MegModel
from megedit.adapter.change import changing
from megedit.adapter.folder import read_config
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.adapter.sqlite import create
from megedit.adapter.weights import to_bytes
from megedit.evaluate import EvaluationSettings, evaluate
from megedit.pseudo.knowledge import text_key
from megedit.router.index import EditVectors

LEDGER_EDITS, VECTOR_SIZE, WEIGHT_SIZE, RUNS = 100_000, 384, 1152, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--set", choices=("counterfact", "zsre_style"), default="counterfact")
    parser.add_argument("--new", type=int, default=100, help="facts that are added")
    parser.add_argument("--removed", type=int, default=100, help="old edits that are removed")
    parser.add_argument("--asked", type=int, default=500, help="old edits drawn at random to be asked")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        folder = Path(shutil.copytree(options.adapter, Path(work) / "adapter"))
        with reading(folder) as ledger:
            old = [record.edit for record in ledger.records(status="active")]
        stages = read_config(folder).provenance["stages"]
        seen = set(load_file(folder / "seen.safetensors")["keys"].tolist())
        following = list(load_set(options.data, options.set, len(old) + 3 * options.new).edits)[len(old) :]
        new = [edit for edit in following if not seen & {text_key(text) for text in texts_of(edit)}][: options.new]
        facts = Path(work) / "new.jsonl"
        facts.write_text("".join(json.dumps(bare(edit).to_json()) + "\n" for edit in new), "utf-8")
        rng = random.Random(options.seed)
        drawn = rng.sample(old, options.asked + options.removed)
        groups = {"old": drawn[: options.asked], "new": new, "removed": drawn[options.asked :]}
        rows = [asked("as fitted", folder, options.base, {"old": groups["old"]})]
        steps: list[dict[str, Any]] = []

        def meg(name: str, *arguments: str) -> None:
            command = [sys.executable, "-m", "megedit", name, str(folder), *arguments]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "200"})
            steps.append({"name": name, "seconds": round(time.perf_counter() - started, 1)})
            print(steps[-1], flush=True)

        meg("add", str(facts), "--keep", "--base", options.base)
        rows.append(asked("others added", folder, options.base, groups, ("old", "new")))
        meg("remove", *(edit.id for edit in groups["removed"]))
        rows.append(asked("and others removed", folder, options.base, groups))
        meg("consolidate", "--base", options.base)
        rows.append(asked("consolidated", folder, options.base, groups))
        with reading(folder) as ledger:
            log = [{"kind": o.kind, "result": o.result} for o in ledger.operations()]
    fit_seconds = sum(cost["seconds"] for cost in stages.values())
    results = {
        "edits": len(old),
        "new": len(new),
        "removed": options.removed,
        "steps": steps,
        "rows": rows,
        "log": log,
        "fit_seconds": round(fit_seconds, 1),
        "consolidation_percent_of_fit": round(100 * steps[-1]["seconds"] / fit_seconds, 1),
        "large": large_ledger(),
    }
    print(json.dumps(results, indent=1))
    settings = {"adapter": options.adapter.name, "asked": options.asked, "seed": options.seed}
    print(write_result("life", settings, results))


def texts_of(edit: Edit) -> tuple[str, ...]:
    """All that is asked of an edit."""
    return (edit.prompt, *edit.rephrases, *edit.neighbours)


def bare(edit: Edit) -> Edit:
    """The new edit as it would be given, without what it is evaluated with."""
    return replace(edit, rephrases=(), neighbours=())


def asked(
    name: str,
    folder: Path,
    base: str,
    groups: dict[str, list[Edit]],
    which: tuple[str, ...] = ("old", "new", "removed"),
) -> dict[str, Any]:
    """The metrics of each group of edits, of removed ones how many of their questions keep the base model's answer."""
    model = MegModel.from_pretrained(folder, base=base)
    row: dict[str, Any] = {"name": name}
    for group in which:
        if not (edits := groups.get(group)):
            continue
        if group == "removed":
            queries = [text for edit in edits for text in (edit.prompt, *edit.rephrases)]
            row["removed_unfamiliar"] = 100 * sum(not route.familiar for route in model.route(queries)) / len(queries)
            continue
        found = evaluate(
            model, EditSet.from_edits(edits, on_conflict="first"), settings=EvaluationSettings(), resume=False
        )
        for metric in measure(found.verdicts, "paper"):
            if metric.edited:
                row[f"{group}_{metric.name}"] = round(metric.edited.value, 2)
    print(row, flush=True)
    return row


def large_ledger() -> dict[str, float]:
    """Milliseconds of what a ledger of many made-up edits is asked for, and the size of what routes by them."""
    vectors = EditVectors.pack(F.normalize(torch.randn(LEDGER_EDITS, VECTOR_SIZE), dim=1))
    (neuron,) = to_bytes(torch.randn(1, WEIGHT_SIZE))
    query = F.normalize(torch.randn(16, VECTOR_SIZE), dim=1)

    def milliseconds(call: Callable[[], Any]) -> float:
        spent = []
        for _ in range(RUNS):
            started = time.perf_counter()
            call()
            spent.append(1000 * (time.perf_counter() - started))
        return round(median(spent), 2)

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        create(folder, WEIGHT_SIZE)
        with changing(folder, "fit", "made up") as change:
            change.add(
                NewEdit(
                    EditRecord(
                        Edit(f"{i}", f"Where is place {i}?", f"town {i % 999}", f"place {i}"), "active", 5, 0, True
                    ),
                    row,
                    neuron,
                )
                for i, row in enumerate(vectors.to_bytes(torch.arange(len(vectors))))
            )
        with reading(folder) as ledger:
            return {
                "edits": LEDGER_EDITS,
                "list_20_ms": milliseconds(lambda: ledger.records(limit=20)),
                "search_ms": milliseconds(lambda: ledger.records(search="PLACE 77777", limit=20)),
                "removed_ms": milliseconds(lambda: ledger.records(status="removed")),
                "route_1_ms": milliseconds(lambda: vectors.nearest(query[:1])),
                "route_16_ms": milliseconds(lambda: vectors.nearest(query)),
                "routing_mb": round((vectors.codes.nbytes + vectors.scales.nbytes) / 1e6, 1),
                "ledger_mb": round((folder / "ledger.db").stat().st_size / 1e6, 1),
            }


if __name__ == "__main__":
    main()
