"""Several threads at one model: each has the answers to its own questions, with the edits or without them."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megedit.model import MegModel, _changes_itself
from tests.tiny import SIZES, VOCAB_SIZE, tiny_model

OTHERS = ("Who wrote Dune?", "Hello", "How many sides has a square?", "It rained all day.", "x")
THREADS, BATCHES = 8, 6


@contextmanager
def together() -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads take turns as often as Python allows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            yield pool
    finally:
        sys.setswitchinterval(interval)


def in_each(pool: ThreadPoolExecutor, task: Callable[[int], Any]) -> list[Any]:
    """The results of a task in `THREADS` threads that begin at the same moment."""
    barrier = threading.Barrier(THREADS)

    def run(thread: int) -> Any:
        barrier.wait()
        return task(thread)

    return list(pool.map(run, range(THREADS)))


def test_every_thread_has_its_own_answers(model: MegModel) -> None:
    queries = [*(edit.prompt for edit in model.edits), *OTHERS]
    edited = dict(zip(queries, model.answer(queries), strict=True))
    with model.disable_edits():
        unedited = dict(zip(queries, model.answer(queries), strict=True))
    assert sum(edited[query] != unedited[query] for query in queries) >= len(model.edits)
    model._finder.forget()

    def ask(thread: int) -> list[str]:
        rng, wrong = random.Random(thread), []
        for _ in range(BATCHES):
            batch, off = rng.sample(queries, rng.randint(1, 7)), rng.random() < 0.3
            with model.disable_edits() if off else nullcontext():
                said = model.answer(batch, max_new_tokens=rng.choice([6, 9]))
                right = unedited if off else edited
            wrong += [query for query, text in zip(batch, said, strict=True) if text != right[query]]
            if not off:
                assert [route.query for route in model.routes] == batch
        return wrong

    with together() as pool:
        assert in_each(pool, ask) == [[]] * THREADS


def test_generate_in_threads(model: MegModel) -> None:
    """Prompts of different widths, several samples a prompt and scores: each row has its own neuron, bit for bit."""
    batches: list[Any] = []
    rng = random.Random(0)
    for _ in range(THREADS):
        queries = rng.sample([*(edit.prompt for edit in model.edits), *OTHERS], rng.randint(2, 6))
        batches.append(model.tokenizer([model.format(q) for q in queries], return_tensors="pt", padding=True))
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    expected = [model.generate(**inputs, **options) for inputs in batches]
    model._finder.forget()

    def generate(thread: int) -> list[torch.Tensor]:
        return [model.generate(**batches[(thread + i) % THREADS], **options) for i in range(3)]

    with together() as pool:
        for thread, outputs in enumerate(in_each(pool, generate)):
            for i, output in enumerate(outputs):
                assert torch.equal(output, expected[(thread + i) % THREADS])


def test_edits_are_switched_off_in_one_thread_only(model: MegModel) -> None:
    prompt = model.edits[0].prompt
    inside, asked = threading.Event(), threading.Event()

    def base() -> list[str]:
        with model.disable_edits():
            inside.set()
            assert asked.wait(60)
            return model.answer([prompt])

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(base)
        assert inside.wait(60)
        assert model.answer([prompt]) == ["Par."]
        asked.set()
        assert other.result() == ["Fr."]
    assert model.answer([prompt]) == ["Par."]


def test_edits_are_switched_off_in_one_model_only(model: MegModel) -> None:
    other = MegModel(model.base, model.tokenizer, model.adapter)
    try:
        with other.disable_edits():
            assert model.answer([model.edits[0].prompt]) == ["Par."]
    finally:
        other.detach()


def test_a_remembered_row_does_not_keep_its_batch(model: MegModel) -> None:
    model.neurons([edit.prompt for edit in model.edits])
    for found in model._finder._remembered.values():
        assert (weights := found.weights) is None or weights.untyped_storage().nbytes() == weights.nbytes


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_model_whose_positions_grow_is_asked_by_one_thread_at_a_time(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4} | ({"factor": 2.0} if kind == "dynamic" else {})
    sizes: dict[str, Any] = {**SIZES, "rope_parameters": rope}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, **sizes)
    assert _changes_itself(LlamaForCausalLM(config)) == (kind == "dynamic")
    assert not _changes_itself(tiny_model("gpt2"))
