"""How well the verifier reads: the share of texts that reach their own edit at a share of false fires, by kind.

    python -m training.measure --data ../shared/data

Of each set its own facts are the store. The edits nearest to a query, by the shipped encoder, are the candidates; the
one with the highest logit fires. DIR holds the test sets that are no part of the corpus; without it, only the settings
facts are measured. Writes benchmarks/results/reading.json and, from the settings facts, the curve that the package
ships (src/megedit/data/curve.json).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import on_device, write_result
from megedit.encoder import TextEncoder, readings, shipped_encoder
from megedit.evaluate.firing import cases_of, names_of
from megedit.router import curve
from megedit.router.router import CANDIDATES
from megedit.router.verifier import Verifier, edit_text, load_verifier
from megedit.runtime.files import replacing
from megedit.runtime.shipped import VERIFIER, shipped
from training.corpus import TEST_SHARE, ContrastFact, by_set, corpus, last_subjects, read_facts, split

RATES = (0.01, 0.03, 0.05)  # of false fires
SIGNS = {"fire": "+", "not": "-"}  # in front of the kind of a text
CURVE_RATES = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
OF_KINDS = 0.03  # the one at which every kind is shown
WHOLE = ("contrast_science",)  # test sets of which every fact is tested
PARTS = ("contrast_chat", "halluedit", "wikibigedit", "knowedit_counterfact")  # and those of which the last fifth is


class Reading(NamedTuple):
    """What became of a text. kind: behind + where it asks for its fact, - where not. right: the edit is its own."""

    kind: str
    score: float
    right: bool


def main() -> None:
    """Measure the verifier and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the test sets")
    parser.add_argument(
        "--weights", type=Path, default=shipped(VERIFIER), help="of another verifier than the shipped one"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    verifier = load_verifier(options.weights, options.device)
    encoder = shipped_encoder(options.device)
    sets = {f"settings {name}": facts for name, facts in by_set(split(corpus())[1]).items()}
    if options.data is None:
        print("Without --data only the settings facts are measured: the test sets are no part of the corpus.")
    else:
        sets |= {f"test {name}": facts for name, facts in held_out_sets(options.data).items()}
    result, of_settings = dict[str, Any](), list[Reading]()
    for name, facts in sets.items():
        found = measured(facts, encoder, verifier)
        result[name] = summary(found)
        print(name, result[name]["recognised"], flush=True)
        if name.startswith("settings"):
            of_settings += found
    result["settings"] = summary(of_settings)
    points = curve_of(of_settings)
    if options.weights == shipped(VERIFIER):
        write_curve(points)
    settings = {"candidates": CANDIDATES, "weights": options.weights.name}
    measured_sets = {"sets": result, "curve": points}
    print(write_result("reading" + on_device(options.device), settings, measured_sets))


def held_out_sets(data: Path) -> dict[str, list[ContrastFact]]:
    """The facts that are tested on, none of which is in the corpus."""
    found = {name: read_facts(data / f"{name}.jsonl", name) for name in (*WHOLE, *PARTS)}
    for name in PARTS:
        held = last_subjects(found[name], TEST_SHARE)
        found[name] = [fact for fact in found[name] if fact.subject in held]
    return found


def measured(facts: Sequence[ContrastFact], encoder: TextEncoder, verifier: Verifier) -> list[Reading]:
    """The reading of every text of the facts, the edits of the store, but those that ask for another of them."""
    names = names_of((fact.prompt, str(i)) for i, fact in enumerate(facts))
    cases = [case for case in cases_of(facts, names)[0] if case.side == "fire" or not case.own]
    queries, count = [case.query for case in cases], min(CANDIDATES, len(facts))
    nearest = candidates(encoder, queries, [fact.prompt for fact in facts], count)  # (queries, count)
    edits = [edit_text(fact.prompt, fact.target) for fact in facts]
    logits = torch.tensor(verifier.read(queries, [[edits[j] for j in row] for row in nearest.tolist()]))
    best, at = logits.max(1)  # each (queries,)
    fired = nearest.gather(1, at[:, None]).squeeze(1)  # (queries,)
    return [
        Reading(f"{SIGNS[case.side]}{case.kind}", score, str(edit) in case.own)
        for case, score, edit in zip(cases, best.tolist(), fired.tolist(), strict=True)
    ]


def candidates(encoder: TextEncoder, queries: Sequence[str], prompts: Sequence[str], count: int) -> Tensor:
    """The edits nearest to each query, in any of its readings: int64 (queries, count)."""
    parts = [readings(query) for query in queries]
    owner = torch.arange(len(queries)).repeat_interleave(torch.tensor([len(of) for of in parts]))  # (readings,)
    similarity = encoder.encode([text for of in parts for text in of]) @ encoder.encode(prompts).T  # (readings, edits)
    best = torch.full((len(queries), len(prompts)), -1.0)
    best = best.scatter_reduce(0, owner[:, None].expand_as(similarity), similarity, "amax")  # (queries, edits)
    return best.topk(count).indices


def curve_of(found: Sequence[Reading]) -> list[tuple[float, float, float]]:
    """At falling thresholds: the threshold, the share of near misses that fire, and the share recognised."""
    asking, other = ([reading for reading in found if reading.kind[0] == sign] for sign in "+-")
    scores = torch.tensor([reading.score for reading in other])
    thresholds = [(float(scores.quantile(1 - rate)), rate) for rate in CURVE_RATES]
    return [(round(threshold, 3), rate, round(fires(asking, threshold) / 100, 3)) for threshold, rate in thresholds]


def write_curve(points: Sequence[tuple[float, float, float]]) -> None:
    """Write the curve that the package ships."""
    with replacing(shipped(curve.FILE)) as partial:
        partial.write_text(json.dumps({"points": points}, indent=1) + "\n", "utf-8")


def summary(found: Sequence[Reading]) -> dict[str, Any]:
    """The share recognised at each rate of false fires, and at one of them what fires of every kind, in per cent."""
    asking = [reading for reading in found if reading.kind[0] == "+"]
    false = torch.tensor([reading.score for reading in found if reading.kind[0] == "-"])
    thresholds = {rate: float(false.quantile(1 - rate)) if len(false) else 0.0 for rate in RATES}
    kinds: dict[str, list[Reading]] = defaultdict(list)
    for reading in found:
        kinds[reading.kind].append(reading)
    return {
        "texts": {"ask": len(asking), "do not ask": len(false)},
        "recognised": {f"{rate:.0%}": fires(asking, thresholds[rate]) for rate in RATES},
        "threshold": round(thresholds[OF_KINDS], 2),
        "kinds": {kind: fires(kinds[kind], thresholds[OF_KINDS]) for kind in sorted(kinds)},
    }


def fires(found: Iterable[Reading], threshold: float) -> float:
    """How many of the readings fire, in per cent: of those that ask, the ones with their own edit."""
    hits = [reading.score > threshold and (reading.right or reading.kind[0] == "-") for reading in found]
    return round(100 * sum(hits) / max(len(hits), 1), 1)


if __name__ == "__main__":
    main()
