"""The search for the edits nearest to a query among very many: compared with all of them, and coarsely first.

    python -m benchmarks.index --data DIR --vectors 100000 1000000

The vectors are those of the first prompts of `make_many` (--encoded, 30,000), by the shipped encoder; the others are
made, each between two of these. Queries are rephrases of the encoded facts, half of them behind a noise sentence. What
the comparison with all finds is right; `found` is the share of it that the coarse search finds, or something as near:
of the nearest edit, and of the four that the verifier may read. Writes results/index.json.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import write_result
from benchmarks.make_many import many
from megedit.encoder import shipped_encoder
from megedit.pseudo.knowledge import load_pseudo_knowledge
from megedit.router.coarse import Coarse
from megedit.router.index import EditVectors
from megedit.router.router import CANDIDATES

QUERIES, TIMED = 1000, 200
ROUNDING = 1e-5  # of a similarity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vectors", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--encoded", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    known, queries = encoded(options.data, options.encoded, options.seed)
    rows = [row for count in options.vectors for row in measured(made(known, count, options.seed), queries)]
    settings = {"encoded": len(known), "queries": len(queries), "timed": TIMED, "seed": options.seed}
    print(write_result("index", settings, {"rows": rows}))


def encoded(data: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of so many prompts, float32 (edits, size), and of some of their rephrases, float32 (queries, size)."""
    encoder, rng = shipped_encoder(), random.Random(seed)
    edits = list(islice(many(data, count, seed), count))
    asked = rng.sample([edit.rephrases[0] for edit in edits if edit.rephrases], QUERIES)
    noise = load_pseudo_knowledge().noise
    asked = [f"{rng.choice(noise)} {text}" if i % 2 else text for i, text in enumerate(asked)]
    return encoder.encode([edit.prompt for edit in edits]), encoder.encode(asked)


def made(known: Tensor, count: int, seed: int) -> EditVectors:
    """So many vectors: the known ones, and others, each between two of them."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(known), (2, max(count - len(known), 0)), generator=generator)
    return EditVectors.pack(torch.cat([known[:count], F.normalize(3 * known[first] + 2 * known[second], dim=1)]))


def measured(vectors: EditVectors, queries: Tensor) -> list[dict[str, Any]]:
    """A row for the comparison with all vectors, and one for the coarse search first."""
    started = time.perf_counter()
    indexed = replace(vectors, coarse=Coarse.of(vectors.unpack()))
    built = time.perf_counter() - started
    right, _ = vectors.nearest(queries, CANDIDATES)  # similarities (queries, CANDIDATES)
    found = torch.cat([indexed.nearest(query[None], CANDIDATES)[0] for query in queries])
    as_near = found >= right - ROUNDING
    common = {"vectors": len(vectors)}
    rows = [
        {
            **common,
            "way": "all",
            "ms": milliseconds(lambda query: vectors.nearest(query, CANDIDATES), queries[: TIMED // 4]),
            "found_1": 100.0,
            "found_4": 100.0,
        },
        {
            **common,
            "way": "128 directions first",
            "build_seconds": round(built, 1),
            "ms": milliseconds(lambda query: indexed.nearest(query, CANDIDATES), queries[:TIMED]),
            "found_1": round(100 * float(as_near[:, 0].float().mean()), 2),
            "found_4": round(100 * float(as_near.float().mean()), 2),
        },
    ]
    print(*rows, sep="\n", flush=True)
    return rows


def milliseconds(search: Callable[[Tensor], Any], queries: Tensor) -> float:
    """The median of the time that a query takes."""
    spent = []
    for query in queries:
        started = time.perf_counter()
        search(query[None])
        spent.append(1000 * (time.perf_counter() - started))
    return round(median(spent), 2)


if __name__ == "__main__":
    main()
