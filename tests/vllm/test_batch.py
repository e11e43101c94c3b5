"""The tables of a step: which token has which slot, and how slots are given and freed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megedit.vllm.adapters import neuron_of
from megedit.vllm.batch import Neuron, Slots, Span, Tables, spans

D = 8


def neuron(seed: int, first: int = 0, width: int = 2 * D) -> Neuron:
    return neuron_of(3, first, np.random.default_rng(seed).standard_normal(width).astype(np.float32))


def test_spans_stand_one_after_the_other() -> None:
    step = spans(["a", "b", "c"], [3, 1, 2], np.array([0, 7, 4, 99]).tolist())
    assert step == [Span("a", 0, 3, 0), Span("b", 3, 1, 7), Span("c", 4, 2, 4)]


def test_a_neuron_acts_from_its_first_token_on() -> None:
    """The prompt of five tokens comes in two chunks; then one token a step."""
    tables, neurons = Tables(4, 16, D, "silu"), {"a": neuron(0, first=4)}
    for start, count, expected in ((0, 3, [0, 0, 0]), (3, 2, [0, 1]), (5, 1, [1]), (6, 1, [1])):
        tables.fill([Span("other", 0, 2, 0), Span("a", 2, count, start)], neurons)
        assert tables.slots.tolist() == [0, 0, *expected] + [0] * (14 - count)
    tables.fill([Span("other", 0, 16, 0)], neurons)
    assert not tables.slots.any()


def test_the_weights_stand_in_the_row_of_the_slot() -> None:
    tables, neurons = Tables(2, 8, D, "silu"), {"a": neuron(0), "b": neuron(1, width=2 * D + 1)}
    places = {name: getattr(tables, name).data_ptr() for name in ("slots", "keys", "biases", "values")}
    tables.fill([Span("a", 0, 1, 0), Span("b", 1, 1, 0)], neurons)
    for token, name in enumerate("ab"):
        slot, weights = int(tables.slots[token]), torch.from_numpy(neurons[name].weights)
        assert torch.equal(tables.keys[slot], weights[:D]) and torch.equal(tables.values[slot], weights[-D:])
        assert float(tables.biases[slot]) == (weights[D] if name == "b" else 0)
    assert not tables.keys[0].any() and not tables.values[0].any() and tables.biases[0] == 0
    assert places == {name: getattr(tables, name).data_ptr() for name in places}  # a graph would read them there


def test_a_request_that_begins_anew_has_its_new_neuron() -> None:
    tables = Tables(2, 8, D, "silu")
    tables.fill([Span("a", 0, 1, 0)], {"a": neuron(0)})
    tables.drop("a")
    tables.fill([Span("a", 0, 1, 0)], {"a": neuron(1)})
    assert torch.equal(tables.keys[int(tables.slots[0])], torch.from_numpy(neuron(1).weights[:D]))


steps = st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=3), max_size=20)


@given(steps, st.sets(st.sampled_from("abcdefgh")))
def test_every_step_finds_room(steps: list[set[str]], ended: set[str]) -> None:
    """Whatever was preempted or aborted before: three requests a step, three slots, each its own."""
    slots = Slots(3)
    for number, step in enumerate(steps):
        before = {request: slots._slots[request] for request in step if request in slots._slots}
        new = slots.assign(sorted(step))
        assert set(new) == step - before.keys()
        assert {request: slots[request] for request in before} == before
        assert len({slots[request] for request in step}) == len(step) and all(1 <= slots[r] <= 3 for r in step)
        if number % 2:
            for request in ended:
                slots.drop(request)
                slots.drop(request)
    assert len(slots) + len(slots._free) == 3
