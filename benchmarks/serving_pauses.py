"""Answering while edits are added: the longest time without a new token of an answer that is streamed.

    python -m benchmarks.serving_pauses --adapter adapters/demo --data DIR [--edits 10000]

A real `meg serve` process streams one answer after the other, alone and while 25 facts are added. The store is filled
up as in benchmarks/serving.py. Writes results/serving_pauses.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from benchmarks.common import write_result
from benchmarks.make_shipped_data import records
from benchmarks.serving import KEY, filled, served

ADDED = 25  # facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with counterfact.jsonl and nq_locality.jsonl")
    parser.add_argument("--edits", type=int, default=10_000, help="size of the store")
    options = parser.parse_args()
    others = [record["question"] for record in records(options.data / "nq_locality.jsonl")]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        filled(options.adapter, store, options.edits, options.data / "counterfact.jsonl")
        with served(store) as server:
            results = asyncio.run(pauses(server.url, others))
    print(json.dumps(results))
    print(write_result("serving_pauses", {"adapter": options.adapter.name, "edits": options.edits}, results))


async def pauses(url: str, others: Sequence[str]) -> dict[str, float]:
    """The longest seconds without a new token of streamed answers, alone and while facts are added."""
    facts = [{"prompt": f"Which key opens drawer {n} of the Marlow cabinet?", "target": f"{n}"} for n in range(ADDED)]
    async with httpx2.AsyncClient(base_url=url, timeout=600, headers={"Authorization": f"Bearer {KEY}"}) as http:
        alone = [await longest_pause(http, others[number]) for number in range(4)]
        started, during = time.perf_counter(), list[float]()
        adding = asyncio.create_task(http.post("/v1/edits", json={"edits": facts, "on_conflict": "keep"}))
        while not adding.done():
            during.append(await longest_pause(http, others[len(during)]))
        (await adding).raise_for_status()
    seconds = time.perf_counter() - started
    found = {"alone": max(alone), "while_adding": max(during), "adding_seconds": seconds}
    return {"facts": ADDED, **{name: round(value, 3) for name, value in found.items()}}


async def longest_pause(http: httpx2.AsyncClient, question: str) -> float:
    """The longest time between two parts of a streamed answer, after the first."""
    body = {"model": "served", "messages": [{"role": "user", "content": question}], "max_tokens": 100, "stream": True}
    times = []
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line:
                times.append(time.perf_counter())
    return max((b - a for a, b in itertools.pairwise(times[1:])), default=0.0)


if __name__ == "__main__":
    main()
