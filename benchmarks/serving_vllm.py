"""vLLM's server with edits under load: its answers, and its time beside that of the same server without the plugin.

    .venv-vllm/bin/python -m benchmarks.serving_vllm --adapter adapters/demo --data DIR [--requests 1000]

A real `meg serve --engine vllm` process is asked over HTTP. All questions carry the instruction of the adapter's
template, which vLLM's server does not add by itself.

- answers: 100 clients ask edited questions, rephrases and other questions (Natural Questions), with edits and without.
  Then the same server is asked each of them alone, with nothing in its prefix cache. Which questions have a neuron, and
  whether their answer holds the target, is compared with the Python model. Where an answer is another one than alone,
  the gap says by how much the model preferred its token there, in log probability: the sums of a batch are rounded in
  another order, and where two tokens are as likely, either may win.
- load: 16 clients, in rounds against this server and the one without the plugin in turn. All answers have 20 tokens,
  since an edited one would end sooner than the base model's.

Writes results/serving_vllm.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from benchmarks.common import write_result
from benchmarks.make_shipped_data import records
from benchmarks.serving import (
    CLIENTS,
    PER_ROUND,
    SEED,
    TOKENS,
    Answer,
    Question,
    Served,
    any_port,
    launched,
    load,
    run,
)
from megedit import MegModel
from megedit.vllm import VARIABLE
from megedit.vllm.start import command

EDITED, OTHERS = 40, 20  # questions whose answers are checked, each asked many times
MANY_CLIENTS, ANSWER_TOKENS = 100, 16  # when answers are checked
SPACE = "2"  # GiB for keys and values of each server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with nq_locality.jsonl")
    parser.add_argument("--requests", type=int, default=1000, help="whose answers are checked")
    parser.add_argument("--rounds", type=int, default=6, help=f"of {PER_ROUND} requests, for each kind of questions")
    options = parser.parse_args()
    model = MegModel.from_pretrained(options.adapter)
    instruction = model.adapter.config.template.instruction
    others = [instruction + record["question"] for record in records(options.data / "nq_locality.jsonl")]
    bare = {text: edit.target for edit in model.edits for text in (edit.prompt, *edit.rephrases[:1])}
    edited = {instruction + text: target for text, target in bare.items()}
    checked, edits = checked_questions(model, edited, others), len(model.edits)
    del model
    results: dict[str, Any] = {}
    began = time.perf_counter()
    with served(options.adapter, edits=True) as server:
        results["start_seconds"] = round(time.perf_counter() - began, 1)
        version = httpx2.get(f"{server.url}/version").json()["version"]
        results["answers"] = asyncio.run(check_answers(server.url, checked, options.requests))
        results["bare"] = asyncio.run(bare_answers(server.url, bare))
        print(json.dumps(results), flush=True)
        with served(options.adapter, edits=False) as plain:
            urls = {True: server.url, False: plain.url}
            results["load"] = asyncio.run(load(urls, list(edited), others, options.rounds, ask_to_the_end))
    print(json.dumps(results["load"]))
    settings = {
        "adapter": options.adapter.name,
        "edits": edits,
        "vllm": version,
        "clients": CLIENTS,
        "tokens": TOKENS,
        "rounds": options.rounds,
        "seed": SEED,
    }
    print(write_result("serving_vllm", settings, results))


@contextmanager
def served(adapter: Path, *, edits: bool) -> Iterator[Served]:
    """Serve an adapter by vLLM, or its base model by vLLM without the plugin."""
    port = any_port()
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": SPACE}
    environment.pop(VARIABLE, None)
    start = command(adapter, None, "served", "127.0.0.1", port)
    if edits:
        start = [sys.executable, "-m", "megedit", "serve", str(adapter), "--engine", "vllm"]
        start += ["--port", str(port), "--name", "served"]
    with launched(start, environment, port, "/health") as server:
        yield server


async def ask(http: httpx2.AsyncClient, question: Question, tokens: int, **fields: Any) -> Answer:
    """Seconds and answer of one request. fields: further ones of it."""
    text, edits = question
    body = {"model": "served", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
    choice = {"megedit": "on" if edits else "off"}  # which the server without the plugin does not read
    began = time.perf_counter()
    answer = await http.post("/v1/chat/completions", json={**body, **fields, "vllm_xargs": choice})
    answer.raise_for_status()
    return time.perf_counter() - began, answer.json()


async def ask_to_the_end(http: httpx2.AsyncClient, question: Question, tokens: int) -> Answer:
    """The same, with an answer of all the tokens, however soon it would end."""
    return await ask(http, question, tokens, ignore_eos=True)


async def ask_with_tokens(http: httpx2.AsyncClient, question: Question, tokens: int) -> Answer:
    """The same, with the two likeliest tokens at each place; an empty answer where none came."""
    try:
        return await ask(http, question, tokens, logprobs=True, top_logprobs=2)
    except httpx2.HTTPError:
        return 0.0, {}


async def ask_uncached(http: httpx2.AsyncClient, question: Question, tokens: int) -> Answer:
    """The same, with nothing in the prefix cache."""
    return await ask(http, question, tokens, logprobs=True, top_logprobs=2, cache_salt=repr(question))


# -- answers


class Checked(NamedTuple):
    """A question whose answers are checked.

    target: that of its edit, empty where there is none. neuron: the Python model has one for it. holds: the Python
    model's answer has the target.
    """

    text: str
    target: str
    neuron: bool
    holds: bool


def checked_questions(model: MegModel, edited: Mapping[str, str], others: Sequence[str]) -> list[Checked]:
    """Edited and other questions, with what the Python model does."""
    rng = random.Random(SEED)
    texts = [*rng.sample(list(edited), EDITED), *rng.sample(others, OTHERS)]
    bare = [text.removeprefix(model.adapter.config.template.instruction) for text in texts]
    found, answers = model.find(bare), model.greedy(bare, ANSWER_TOKENS)
    return [
        Checked(text, target, each.weights is not None, bool(target) and target in answer.text)
        for text, target, each, answer in zip(
            texts, [edited.get(text, "") for text in texts], found, answers, strict=True
        )
    ]


class Said(NamedTuple):
    """An answer. gaps: how much likelier each of its tokens was than the next likely, in log probability."""

    text: str
    tokens: list[str]
    gaps: list[float]


def said(answer: Mapping[str, Any]) -> Said:
    """What a server said."""
    [choice] = answer["choices"]
    places = choice["logprobs"]["content"]
    gaps = [place["top_logprobs"][0]["logprob"] - place["top_logprobs"][1]["logprob"] for place in places]
    return Said(choice["message"]["content"], [place["token"] for place in places], gaps)


def gap(alone: Said, other: Said) -> float:
    """The gap at the first token in which an answer is another than alone."""
    pairs = zip(alone.gaps, alone.tokens, other.tokens, strict=False)
    return next((gap for gap, mine, yours in pairs if mine != yours), math.inf)


async def check_answers(url: str, checked: Sequence[Checked], count: int) -> dict[str, Any]:
    """Requests of many clients at once, counted by what is wrong with their answers."""
    rng = random.Random(SEED)
    different: list[Question] = [(each.text, on) for each in checked for on in (True, False)]
    asked = [rng.choice([*different, *different[::2]]) for _ in range(count)]  # with edits twice as often
    began = time.perf_counter()
    found = await run(url, asked, MANY_CLIENTS, ANSWER_TOKENS, ask_with_tokens)
    seconds = time.perf_counter() - began
    told = await run(url, different, 1, ANSWER_TOKENS, ask_uncached)
    alone = {question: said(answer) for question, (_, answer) in zip(different, told, strict=True)}
    answered = [(question, said(answer)) for question, (_, answer) in zip(asked, found, strict=True) if answer]
    about, others = {each.text: each for each in checked}, [each.text for each in checked if not each.neuron]
    edited = [(question, answer) for question, answer in answered if question[1] and about[question[0]].neuron]
    base = [(question, answer) for question, answer in answered if not question[1] or not about[question[0]].neuron]
    right = [(about[text].target, answer) for (text, _), answer in edited if about[text].holds]
    return {
        "requests": count,
        "clients": MANY_CLIENTS,
        "different_questions": len(set(asked)),
        "lost": count - len(answered),
        "edited": compared(edited, alone) | {"by_python": len(right), "missed": sum(t not in a.text for t, a in right)},
        "base": compared(base, alone),
        "without_neuron": {
            "questions": len(others),
            "other_than_off": sum(alone[text, True] != alone[text, False] for text in others),
        },
        "seconds": round(seconds, 1),
    }


def compared(found: Sequence[tuple[Question, Said]], alone: Mapping[Question, Said]) -> dict[str, Any]:
    """Answers that are other ones than alone, and those among them that are the answers to another question."""
    other = [(question, answer) for question, answer in found if answer.text != alone[question].text]
    texts = {answer.text for answer in alone.values()}
    return {
        "requests": len(found),
        "other_than_alone": len(other),
        "of_another_question": sum(answer.text in texts for _, answer in other),
        "largest_gap": round(max((gap(alone[question], answer) for question, answer in other), default=0.0), 3),
    }


async def bare_answers(url: str, edited: Mapping[str, str]) -> dict[str, int]:
    """Edited questions without the instruction whose answer has the target."""
    texts = random.Random(SEED).sample(list(edited), EDITED)
    found = await run(url, [(text, True) for text in texts], CLIENTS, ANSWER_TOKENS, ask)
    told = [answer["choices"][0]["message"]["content"] for _, answer in found]
    right = sum(edited[text] in answer for text, answer in zip(texts, told, strict=True))
    return {"questions": len(texts), "with_target": right}


if __name__ == "__main__":
    main()
