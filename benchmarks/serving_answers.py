"""Answers of a server under load against those of the Python model.

    python -m benchmarks.serving_answers --adapter adapters/demo --data DIR [--requests 10000]

100 clients ask edited questions, rephrases and other questions (Natural Questions), with edits and without; each sends
its next request when the last was answered. Every answer, and the edit that it names, is compared with that of the
Python model to the same prompt. Writes results/serving_answers.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.make_shipped_data import records
from benchmarks.serving import Question, run, served
from megedit import MegModel
from megedit.lm.decoding import GREEDY, cut_answers, end_tokens
from megedit.runtime.progress import Stages

CLIENTS = 100
TOKENS = 16
EDITED, OTHERS = 200, 100  # questions, each asked many times
IN_PYTHON = 16  # questions at a time
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with nq_locality.jsonl")
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    others = [record["question"] for record in records(options.data / "nq_locality.jsonl")]
    model = MegModel.from_pretrained(options.adapter)
    edited = [text for edit in model.edits for text in (edit.prompt, *edit.rephrases[:1])]
    results = checked(model, options.adapter, edited, others, options.requests)
    print(json.dumps(results))
    print(write_result("serving_answers", {"adapter": options.adapter.name, "tokens": TOKENS, "seed": SEED}, results))


def checked(model: MegModel, adapter: Path, edited: Sequence[str], others: Sequence[str], count: int) -> dict[str, Any]:
    """Requests whose answer is not the Python model's."""
    rng = random.Random(SEED)
    texts = [*rng.sample(list(edited), EDITED), *rng.sample(list(others), OTHERS)]
    pool: list[Question] = [(text, on) for text in texts for on in (True, True, False)]
    asked = [rng.choice(pool) for _ in range(count)]
    right = python_answers(model, sorted(set(asked)))
    started = time.perf_counter()
    with served(adapter) as server:
        found = asyncio.run(run(server.url, asked, CLIENTS, TOKENS))
    wrong = [
        (question, answer["choices"][0]["message"]["content"], right[question])
        for question, (_, answer) in zip(asked, found, strict=True)
        if (answer["choices"][0]["message"]["content"], answer["megedit"]["edit"]) != right[question]
    ]
    used = sum(answer["megedit"]["edit"] is not None for _, answer in found)
    return {
        "requests": count,
        "clients": CLIENTS,
        "different_questions": len(right),
        "with_an_edit": used,
        "wrong": len(wrong),
        "examples": [list(map(str, each)) for each in wrong[:5]],
        "seconds": round(time.perf_counter() - started, 1),
    }


def python_answers(model: MegModel, questions: Sequence[Question]) -> dict[Question, tuple[str, str | None]]:
    """Text and edit by the Python model: in the adapter's template where an edit fires, else as a plain chat."""
    found: dict[Question, tuple[str, str | None]] = {}
    ends = end_tokens(model.base, model.tokenizer)
    with Stages().stage("Answers in Python", len(questions)) as advance:
        for first in range(0, len(questions), IN_PYTHON):
            batch = questions[first : first + IN_PYTHON]
            routed = model.find([text for text, _ in batch])
            own = [each if on and each.route.familiar else None for (_, on), each in zip(batch, routed, strict=True)]
            prompts = [
                model.format(text) if each else plain_chat(model, [{"role": "user", "content": text}])
                for (text, _), each in zip(batch, own, strict=True)
            ]
            inputs = model.tokenizer(prompts, return_tensors="pt", padding=True)
            neurons = [each.weights if each else None for each in own]
            output = model.generate(**inputs, neurons=neurons, **{**GREEDY, "max_new_tokens": TOKENS})
            rows = cut_answers(output[:, inputs["input_ids"].shape[1] :], ends)
            for question, each, row in zip(batch, own, rows, strict=True):
                edit = each.route.edit if each else None
                found[question] = str(model.tokenizer.decode(row, skip_special_tokens=True)), edit.id if edit else None
            advance(len(batch))
    return found


def plain_chat(model: MegModel, chat: list[dict[str, str]]) -> str:
    """The model's own prompt for a chat."""
    return str(model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


if __name__ == "__main__":
    main()
