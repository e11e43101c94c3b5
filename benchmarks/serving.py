"""A server under load: time with and without edits, and throughput.

    python -m benchmarks.serving --adapter adapters/demo --data DIR [--edits 0 1000 10000] [--rounds 16]

A real `meg serve` process is asked over HTTP by clients that each send their next request when the last was answered.

- load: 16 clients ask other questions and a mix with edited ones, 20 tokens each, in rounds with edits and without
  (`"megedit": {"edits": false}`, where the router is not asked) in turn, so that a slower minute is one for both. The
  stores beyond the adapter's own edits are filled up with facts of CounterFact that have the neuron of one of the
  adapter's edits: they cost what edits cost, and are not asked.
- one by one: the same questions by `MegModel`, one after the other.

Writes results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np

from benchmarks.common import write_result
from benchmarks.make_shipped_data import records
from megedit import MegModel
from megedit.adapter.adapter import load_adapter
from megedit.adapter.change import changing
from megedit.adapter.ledger import EditRecord, NewEdit, reading
from megedit.edits import Edit, read_edits
from megedit.operations import remove
from megedit.router.index import EditVectors, owners_of

KEY = "benchmark-edit-key"
TOKENS = 20
CLIENTS = 16
PER_ROUND = 20  # requests of a round
ONE_BY_ONE = 16
SEED = 0

Question = tuple[str, bool]  # and whether edits are on
Answer = tuple[float, dict[str, Any]]  # seconds, and what the server said
Ask = Callable[[httpx2.AsyncClient, Question, int], Awaitable[Answer]]  # int: tokens of the answer at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with counterfact.jsonl and nq_locality.jsonl")
    parser.add_argument("--edits", type=int, nargs="*", default=[0, 1000, 10_000], help="sizes of the stores")
    parser.add_argument("--rounds", type=int, default=16, help=f"of {PER_ROUND} requests, for each kind of questions")
    options = parser.parse_args()
    others = [record["question"] for record in records(options.data / "nq_locality.jsonl")]
    model = MegModel.from_pretrained(options.adapter)
    edited = [text for edit in model.edits for text in (edit.prompt, *edit.rephrases[:1])]
    results: dict[str, Any] = {"one_by_one": one_by_one(model, mixed(edited, others, ONE_BY_ONE))}
    del model
    for size in options.edits:
        with tempfile.TemporaryDirectory() as folder:
            filled(options.adapter, Path(folder, "store"), size, options.data / "counterfact.jsonl")
            with served(Path(folder, "store")) as server:
                urls = {True: server.url, False: server.url}
                found = asyncio.run(load(urls, edited if size else [], others, options.rounds))
            results[f"edits_{size}"] = found
            print(size, json.dumps(found), flush=True)
    rates = [results[f"edits_{size}"]["mixed"]["edited"]["requests_per_second"] for size in options.edits if size]
    if rates:
        results["times_one_by_one"] = round(rates[0] / results["one_by_one"]["requests_per_second"], 2)
    settings = {
        "adapter": options.adapter.name,
        "clients": CLIENTS,
        "tokens": TOKENS,
        "rounds": options.rounds,
        "seed": SEED,
    }
    print(write_result("serving", settings, results))


def any_port() -> int:
    """A port that is likely to be free."""
    return random.SystemRandom().randint(20_000, 60_000)


class Served(NamedTuple):
    """A server that is ready, a process of its own. log: what it has written."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def served(adapter: Path, *options: str) -> Iterator[Served]:
    """Serve an adapter, with options of `meg serve`."""
    port = any_port()
    command = [sys.executable, "-m", "megedit", "serve", str(adapter), "--port", str(port), "--name", "served"]
    with launched([*command, *options], {**os.environ, "MEGEDIT_EDIT_KEY": KEY}, port, "/ready") as server:
        yield server


@contextmanager
def launched(command: Sequence[str], environment: Mapping[str, str], port: int, sign: str) -> Iterator[Served]:
    """Start a server. sign: the path that answers with 200 once it is ready."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield Served(ready(f"http://127.0.0.1:{port}", process, sign), process, Path(log.name))
        finally:
            process.terminate()
            process.wait(120)


def ready(url: str, process: subprocess.Popen[bytes], sign: str) -> str:
    """The address, once the server answers there."""
    with httpx2.Client(base_url=url) as http:
        while True:
            assert process.poll() is None, "the server has ended"
            try:
                if http.get(sign).status_code == 200:
                    return url
            except httpx2.TransportError:
                time.sleep(0.05)


async def ask(http: httpx2.AsyncClient, question: Question, tokens: int) -> Answer:
    """Seconds and answer of one request; a full queue is waited for."""
    text, edited = question
    body = {"model": "served", "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    started = time.perf_counter()
    while True:
        answer = await http.post("/v1/chat/completions", json={**body, "megedit": {"edits": edited}})
        if answer.status_code != 429:
            answer.raise_for_status()
            return time.perf_counter() - started, answer.json()
        await asyncio.sleep(float(answer.headers["Retry-After"]))


async def run(url: str, questions: Sequence[Question], clients: int, tokens: int, ask: Ask = ask) -> list[Answer]:
    """Ask the questions by so many clients at once; seconds and answers in the order of the questions."""
    left, found = iter(enumerate(questions)), dict[int, Answer]()
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def client() -> None:
            for number, question in left:
                assert number not in found
                found[number] = await ask(http, question, tokens)

        await asyncio.gather(*(client() for _ in range(clients)))
    return [found[number] for number in range(len(questions))]


def mixed(edited: Sequence[str], others: Sequence[str], count: int) -> list[str]:
    """Questions, half of them edited."""
    rng = random.Random(SEED)
    return [rng.choice(edited) if edited and i % 2 else rng.choice(others) for i in range(count)]


# -- load


async def load(
    urls: Mapping[bool, str], edited: Sequence[str], others: Sequence[str], rounds: int, ask: Ask = ask
) -> dict[str, Any]:
    """Seconds of requests with edits and without, of other questions and of a mix. urls: of both servers, or of one."""
    results = {}
    kinds = {"other": mixed([], others, rounds * PER_ROUND)}
    if edited:
        kinds["mixed"] = mixed(edited, others, rounds * PER_ROUND)
    for on, url in urls.items():
        await run(url, [(text, on) for text in others[-CLIENTS:]], CLIENTS, TOKENS, ask)
    for kind, texts in kinds.items():
        seconds: dict[bool, list[float]] = {True: [], False: []}
        walls = {True: 0.0, False: 0.0}
        for number in range(rounds):
            part = texts[number * PER_ROUND : (number + 1) * PER_ROUND]
            for on in (True, False) if number % 2 else (False, True):
                started = time.perf_counter()
                found = await run(urls[on], [(text, on) for text in part], CLIENTS, TOKENS, ask)
                walls[on] += time.perf_counter() - started
                seconds[on] += [each for each, _ in found]
        results[kind] = {
            "edited" if on else "base": {
                "p50": round(float(np.percentile(seconds[on], 50)), 4),
                "p99": round(float(np.percentile(seconds[on], 99)), 4),
                "requests_per_second": round(len(seconds[on]) / walls[on], 2),
            }
            for on in (True, False)
        }
        edits, base = results[kind]["edited"], results[kind]["base"]
        results[kind]["percent"] = {name: round(100 * (edits[name] / base[name] - 1), 1) for name in ("p50", "p99")}
    return results


def one_by_one(model: MegModel, questions: Sequence[str]) -> dict[str, float]:
    """Requests a second of the Python model, one after the other."""
    model.answer(questions[:1], TOKENS)
    started = time.perf_counter()
    for question in questions:
        model.answer([question], TOKENS)
    return {"requests_per_second": round(len(questions) / (time.perf_counter() - started), 2)}


def filled(adapter: Path, folder: Path, size: int, facts: Path) -> None:
    """A copy of an adapter with so many edits in force: cut down to none, or filled up with further ones."""
    shutil.copytree(adapter, folder)
    loaded = load_adapter(folder)
    own = [record.edit for record in loaded.active]
    if size < len(own):
        remove(folder, [edit.id for edit in own[size:]])
        return
    taken = {edit.prompt for edit in own}
    more = [edit for edit in read_edits(facts, on_conflict="first") if edit.prompt not in taken][: size - len(own)]
    vectors = EditVectors.pack(loaded.encoder.encode([edit.prompt for edit in more])).to_bytes(
        owners_of([1] * len(more))
    )
    with reading(folder) as ledger:
        neuron = ledger.neurons([loaded.active.numbers[0]])[0]
    with changing(folder, "add", facts.name) as change:
        change.add(
            NewEdit(EditRecord(bare(edit), "active", 1.0, 1, False), vector, neuron)
            for edit, vector in zip(more, vectors, strict=True)
        )


def bare(edit: Edit) -> Edit:
    """An edit that fills a store."""
    return Edit(id=f"more-{edit.id}", prompt=edit.prompt, target=edit.target, subject=edit.subject)


if __name__ == "__main__":
    main()
