"""The router alone, on facts with contrast texts: which texts fire their own edit, and which only look like one.

    python -m benchmarks.contrast --data DIR               every set, its own facts the only edits
    python -m benchmarks.contrast --data DIR --edits 10000  contrast_science among so many other edits, and what
                                                            people ask of other things

DIR holds the sets that are no part of the training data (training/data/SOURCES.md). Of the others only the facts that
are held out are asked ("settings"). The router is the one of an adapter (encoder, gate, verifier), of which nothing is
tuned on the edits; no language model is loaded, since only what fires is looked at. Writes results/contrast.json or
results/contrast_EDITS.json.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import on_device, write_result
from benchmarks.edits import load_set
from benchmarks.make_shipped_data import records
from megedit.edits import Edit
from megedit.edits.contrast import ContrastFact
from megedit.edits.subjects import SubjectIndex
from megedit.encoder import TextEncoder, shipped_encoder
from megedit.evaluate.firing import ContrastCase, Fired, cases_of, names_of, rates, run_contrast
from megedit.pseudo.knowledge import load_held_out, seen_in_training
from megedit.pseudo.wordings import calibration_texts
from megedit.router.calibration import calibrate
from megedit.router.familiarity import train_familiarity
from megedit.router.index import EditVectors, owners_of
from megedit.router.router import Enrolled, Router
from megedit.router.verifier import load_verifier
from megedit.runtime.shipped import VERIFIER, shipped
from megedit.settings import DEFAULTS
from training.corpus import by_set, corpus, split
from training.measure import held_out_sets

EXAMPLES = 8  # failures that are kept, of each side
ASKED = 1000  # questions of each kind among many edits
OF_OTHERS = ("neighbour", "same_form_neighbours")  # rows of questions about subjects that are not edited


@cache
def known(device: str, seed: int) -> tuple[TextEncoder, list[Tensor]]:
    """The shipped encoder, and its vectors of the held-out questions: those that play edits, familiar, unfamiliar."""
    encoder = shipped_encoder(device)
    return encoder, [encoder.encode(texts).to(device) for texts in calibration_texts(load_held_out(), seed)]


class Store:
    """Edits, and the router that an adapter of them would have."""

    def __init__(self, edits: Sequence[Edit], device: str, seed: int) -> None:
        self.edits, settings = edits, DEFAULTS
        encoder, held_out = known(device, seed)
        asked = [edit.asked() for edit in edits]
        started = time.perf_counter()
        vectors = EditVectors.pack(encoder.encode([text for texts in asked for text in texts]).to(device))
        both = EditVectors.pack(torch.cat([vectors.unpack(), held_out[0]]))
        network = train_familiarity(both.unpack(), settings.familiarity, seed)
        self.calibration = calibrate(network, both, held_out[1], held_out[2], settings.router)
        self.seconds = time.perf_counter() - started
        self.router = Router(
            encoder,
            network,
            vectors,
            owners_of([len(texts) for texts in asked]).to(device),
            [Enrolled(texts, edit.target) for texts, edit in zip(asked, edits, strict=True)],
            self.calibration,
            load_verifier(shipped(VERIFIER), device),
        )

    def fired(self, queries: Sequence[str]) -> list[tuple[Edit | None, float, str]]:
        """What fires for each query, the score, and what decided."""
        found = self.router.route(queries)
        return [(self.edits[r.fires.edit] if r.fires else None, r.score, r.by) for r in found]

    def cases(self, cases: Sequence[ContrastCase]) -> list[Fired]:
        """What fires for each case."""
        return [Fired(edit.id if edit else None, score) for edit, score, _ in self.fired([c.query for c in cases])]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = among(options) if options.edits else alone(options)
    name = f"contrast_{options.edits}" if options.edits else "contrast"
    settings = {"edits": options.edits, "seed": options.seed, "router": asdict(DEFAULTS.router)}
    print(write_result(name + on_device(options.device), settings, results))


def alone(options: argparse.Namespace) -> dict[str, Any]:
    """Every set, its facts the only edits of a store."""
    sets = {f"test {name}": facts for name, facts in held_out_sets(options.data).items()}
    sets |= {f"settings {name}": facts for name, facts in by_set(split(corpus())[1]).items()}
    results: dict[str, Any] = {}
    for name, facts in sets.items():
        store = Store(as_edits(facts), options.device, options.seed)
        results[name] = measured(store, facts, options.seed)
        print(name, {side: results[name][side]["value"] for side in ("recognised", "false")}, flush=True)
    return results


def among(options: argparse.Namespace) -> dict[str, Any]:
    """contrast_science among other edits; their own rephrases and neighbours; and what people ask of other things."""
    half = options.edits // 2
    sets = {name: load_set(options.data, name, half) for name in ("counterfact", "zsre_style")}
    facts = held_out_sets(options.data)["contrast_science"]
    others = [edit for name in sets for edit in prefixed(sets[name].edits.edits, name)]
    store = Store([*as_edits(facts), *others], options.device, options.seed)
    results: dict[str, Any] = {"contrast_science": measured(store, facts, options.seed)}
    results["calibration"] = asdict(store.calibration) | {"curve": []}
    results["router_seconds"] = round(store.seconds, 1)
    print(results["contrast_science"]["recognised"], results["contrast_science"]["false"], flush=True)
    rng = random.Random(options.seed)
    unseen = [edit.prompt for edit in store.edits]
    edited = SubjectIndex(edit.subject for edit in store.edits if edit.subject)
    for name, chosen in sets.items():
        asked = rng.sample(chosen.edits.edits, min(ASKED, len(chosen.edits)))
        rows = {"rephrase": {edit.id: edit.rephrases[0] for edit in asked if edit.rephrases}, **chosen.more_rephrases}
        rows |= {"neighbour": {edit.id: edit.neighbours[0] for edit in asked if edit.neighbours}}
        rows |= chosen.more_neighbours
        for row, texts in rows.items():
            kept = {edit.id: texts[edit.id] for edit in asked if edit.id in texts}
            if row in OF_OTHERS:  # each set leaves out its own edited subjects, and here there are two of them
                kept = {key: text for key, text in kept.items() if not edited.named_in(text)}
            results[f"{name} {row}"] = of_row(store, name, kept, unseen)
            print(name, row, results[f"{name} {row}"], flush=True)
    for name, queries in strangers(options.data).items():
        results[name] = of_row(store, name, dict(enumerate(queries)), unseen)
        print(name, results[name], flush=True)
    return results


def as_edits(facts: Sequence[ContrastFact]) -> list[Edit]:
    """The facts as edits of their own."""
    return [Edit(f"fact-{i}", fact.prompt, fact.target, fact.subject or None) for i, fact in enumerate(facts)]


def prefixed(edits: Sequence[Edit], name: str) -> list[Edit]:
    """The edits under ids that no other set has."""
    return [Edit(f"{name}-{edit.id}", edit.prompt, edit.target, edit.subject, edit.relation) for edit in edits]


def strangers(data: Path) -> dict[str, list[str]]:
    """Questions and requests that have nothing to do with an edit."""
    questions = [record["question"].strip() for record in records(data / "nq_locality.jsonl")]
    requests = [record.get("text") or record["prompt"] for record in records(data / "traffic.jsonl")]
    return {"nq": questions[:ASKED], "traffic": requests}


def measured(store: Store, facts: Sequence[ContrastFact], seed: int) -> dict[str, Any]:
    """Recognised and false, over all and by kind, and some failures."""
    names = names_of((edit.prompt, edit.id) for edit in store.edits)
    cases, left_out = cases_of(facts, names, seen_in_training)
    verdicts = run_contrast(cases, store.cases)
    recognised, false, kinds = rates(verdicts, len(facts), seed)
    failures = {
        side: [
            {"query": v.case.query, "fact": facts[v.case.fact].prompt, "kind": v.case.kind, "score": v.fired.score}
            for v in verdicts
            if v.case.side == side and v.hit != (side == "fire")
        ]
        for side in ("fire", "not")
    }
    rng = random.Random(seed)
    return {
        "facts": len(facts),
        "recognised": asdict(recognised) if recognised else None,
        "false": asdict(false) if false else None,
        "kinds": {f"{side}: {kind}": asdict(found) for (side, kind), found in kinds.items()},
        "left_out": left_out,
        "examples": {side: rng.sample(found, min(EXAMPLES, len(found))) for side, found in failures.items()},
    }


def of_row(store: Store, name: str, texts: dict[Any, str], own_prompts: Sequence[str]) -> dict[str, Any]:
    """Of questions by the edit that they are near to: the share that fires it, any edit, and that the gate passes.

    Questions that the networks were trained on, or that are an edit's own, are left out.
    """
    prompts = set(own_prompts)
    kept = {key: text for key, text in texts.items() if not seen_in_training(text) and text not in prompts}
    found = store.fired(list(kept.values()))
    own = [edit is not None and edit.id == f"{name}-{key}" for key, (edit, _, _) in zip(kept, found, strict=True)]
    count = max(len(kept), 1)
    return {
        "asked": len(kept),
        "left_out": len(texts) - len(kept),
        "fires_own": round(100 * sum(own) / count, 2),
        "fires": round(100 * sum(edit is not None for edit, _, _ in found) / count, 2),
        "read_by_verifier": round(100 * sum(by == "verifier" for _, _, by in found) / count, 1),
    }


if __name__ == "__main__":
    main()
