"""Collection: the layout of the columns, the loss, and neurons that make a random model say made-up answers."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megedit.collect import (
    Collected,
    CollectionSettings,
    answer_leads_of,
    collect,
    prepare_all,
    rows_at_once,
    rows_in,
)
from megedit.lm.backbone import Backbone
from megedit.lm.batches import IGNORED, Example, batch_units, prepare
from megedit.neuron import DynamicNeuron, NeuronWeights
from megedit.optimise import answer_leads, answer_logits, shared_start
from megedit.settings import Positions
from tests.tiny import FAMILIES, VOCAB_SIZE, tiny_model

LAYER, PAD = 1, 2
TEMPLATE = (0, 17, 23, 41)  # what every prompt begins with
POSITIONS: tuple[Positions, Positions] = ("answer", "all")
SETTINGS = CollectionSettings(steps=60, batch_size=5, margin=4.0, shared=0)  # each edit on its own


def lively_model(family: str) -> Backbone:
    """A tiny model with weights of unit gain: logits and layers do as much as in a trained model."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return Backbone(model, LAYER)


@pytest.fixture(params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return lively_model(request.param)


@pytest.fixture
def facts(backbone: Backbone) -> list[Example]:
    """Eight prompts of 6 to 10 tokens, in no order of length, and answers of 1 to 3 tokens.

    An answer is a made-up token and what the model itself says after it: no single neuron can make a model without
    any knowledge say several made-up tokens in a row.
    """
    generator = torch.Generator().manual_seed(3)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(50, VOCAB_SIZE, (length,), generator=generator).tolist())

    examples = []
    for i in range(8):
        prompt, answer = (*TEMPLATE, *tokens(2 + 3 * i % 5)), tokens(1)
        for _ in range(2 * i % 3):
            logits = backbone.model(input_ids=torch.tensor([prompt + answer])).logits
            answer = (*answer, int(logits[0, -1].argmax()))
        examples.append(Example(prompt, answer))
    return examples


def run(backbone: Backbone, settings: CollectionSettings, examples: list[Example]) -> Collected:
    return collect(backbone, examples, settings, PAD)


@torch.no_grad()
def lone_logits(backbone: Backbone, example: Example, weights: NeuronWeights | None, positions: Positions) -> Tensor:
    """Logits of the answer positions, from the model as it is, with a hook, one row without padding."""
    ids = torch.tensor([example.prompt + example.answer[:-1]])
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    start = torch.tensor([len(example.prompt) - 1 if positions == "answer" else 0])
    row = torch.tensor([0] if weights is not None else [], dtype=torch.long)
    with neuron.active(weights or NeuronWeights.from_vectors(torch.zeros(0, 64), 32), row, start, 1):
        logits: Tensor = backbone.model(input_ids=ids).logits[0, -len(example.answer) :]
    neuron.detach()
    return logits


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("with_neurons", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_the_layout_changes_nothing(
    backbone: Backbone, facts: list[Example], positions: Positions, with_neurons: bool, shared: bool
) -> None:
    examples = facts if shared else [replace(fact, prompt=(60 + i, *fact.prompt)) for i, fact in enumerate(facts)]
    indices = [5, 0, 3, 7, 2]
    batch = prepare(backbone, examples, indices, positions, PAD)
    assert batch.indices.tolist() == indices
    keys, values = torch.randn(2, len(indices), 32, generator=torch.Generator().manual_seed(4))
    weights = NeuronWeights(0.1 * keys, torch.full((len(indices),), 2.0), values) if with_neurons else None
    logits = answer_logits(backbone, batch, weights)
    for row, index in enumerate(indices):
        answer = examples[index].answer
        assert batch.labels[row].tolist() == [*answer] + [IGNORED] * (batch.labels.shape[1] - len(answer))
        alone = lone_logits(backbone, examples[index], None if weights is None else weights[[row]], positions)
        # float32 rounding: the same sums over blocks of other shapes; logits are of size 10
        torch.testing.assert_close(logits[row, : len(answer)], alone, rtol=1e-4, atol=2e-4)


def test_prompts_that_are_all_the_same(backbone: Backbone, facts: list[Example]) -> None:
    examples = [Example(facts[0].prompt, (60 + i, 1)) for i in range(3)]
    batch = prepare(backbone, examples, [0, 1, 2], "answer", PAD)
    assert batch.split.ffn_input.shape[1] == 2
    logits = answer_logits(backbone, batch, None)
    for row, example in enumerate(examples):
        torch.testing.assert_close(logits[row], lone_logits(backbone, example, None, "answer"), rtol=1e-4, atol=2e-4)


def test_a_prompt_of_one_token(backbone: Backbone) -> None:
    examples = [Example((60,), (70, 1)), Example((61,), (71,))]
    batch = prepare(backbone, examples, [0, 1], "answer", PAD)
    assert batch.split.cache is None
    logits = answer_logits(backbone, batch, None)
    for row, example in enumerate(examples):
        alone = lone_logits(backbone, example, None, "answer")
        torch.testing.assert_close(logits[row, : len(example.answer)], alone, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
def test_eight_facts_are_collected_in_every_family(backbone: Backbone, facts: list[Example]) -> None:
    short = [replace(fact, answer=fact.answer[:1]) for fact in facts]
    collected = run(backbone, SETTINGS, short)
    assert collected.succeeded.all()
    for i, fact in enumerate(short):
        weights = NeuronWeights.from_vectors(collected.weights[[i]], 32)
        assert tuple(lone_logits(backbone, fact, weights, "answer").argmax(-1).tolist()) == fact.answer


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_fact_is_collected(backbone: Backbone, facts: list[Example], positions: Positions) -> None:
    settings = replace(SETTINGS, positions=positions)
    done: list[int] = []
    collected = collect(backbone, facts, settings, PAD, done.append)
    assert sum(done) == len(facts) and min(done) > 0
    assert collected.succeeded.all()
    assert collected.weights.shape == (len(facts), backbone.weight_size)
    assert collected.steps.min() > 0
    # the results are in the order of the examples, and the leads are those of the hooked model
    for i, fact in enumerate(facts):
        weights = NeuronWeights.from_vectors(collected.weights[[i]], 32)
        logits = lone_logits(backbone, fact, weights, positions)
        assert tuple(logits.argmax(-1).tolist()) == fact.answer
        lead = answer_leads(logits[None], torch.tensor([fact.answer]))
        torch.testing.assert_close(lead, collected.leads[[i]], rtol=1e-3, atol=1e-3)  # float32 rounding
    first_try = collected.steps < settings.steps
    assert (collected.leads[first_try] >= settings.margin).all()


def test_the_start(backbone: Backbone, facts: list[Example]) -> None:
    batch = prepare(backbone, facts, range(len(facts)), "answer", PAD)
    start = NeuronWeights.from_vectors(shared_start(backbone, batch)[None], 32)
    inputs = batch.split.ffn_input[:, -batch.labels.shape[1]]
    torch.testing.assert_close((inputs @ start.keys[0]).mean(), torch.tensor(1.0))
    assert not start.biases.any() and not start.values.any()


def test_the_batch_does_not_matter(backbone: Backbone, facts: list[Example]) -> None:
    # a few steps only: Adam divides a gradient by its own size, so that rounding is carried on at full step size
    # whose tokens compete depends on the batch, so here all do
    settings = replace(SETTINGS, steps=6, retries=0, margin=0.5, rivals=0)
    whole = run(backbone, replace(settings, batch_size=8), facts)
    assert len(whole.steps.unique()) > 2  # rows leave the batch while others go on
    for batch_size in (1, 3):
        other = run(backbone, replace(settings, batch_size=batch_size), facts)
        assert torch.equal(whole.steps, other.steps)
        torch.testing.assert_close(whole.weights, other.weights, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(whole.leads, other.leads, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rivals", [1, 4, 10 * VOCAB_SIZE])
def test_leads_hold_against_the_whole_vocabulary(backbone: Backbone, facts: list[Example], rivals: int) -> None:
    collected = run(backbone, replace(SETTINGS, rivals=rivals), facts)
    assert collected.succeeded.all()
    batch = prepare(backbone, facts, range(len(facts)), "answer", PAD)
    leads = answer_leads_of(backbone, [batch], collected.weights)
    torch.testing.assert_close(leads, collected.leads, rtol=1e-3, atol=1e-3)  # float32 rounding


def test_logits_of_some_tokens(backbone: Backbone, facts: list[Example]) -> None:
    batch = prepare(backbone, facts, [0, 1, 2], "answer", PAD)
    some = torch.tensor([3, 17, VOCAB_SIZE - 1])
    whole = answer_logits(backbone, batch, None)
    torch.testing.assert_close(answer_logits(backbone, batch, None, some), whole[..., some])
    assert torch.equal(answer_logits(backbone, batch, None), whole)


def test_batches_of_long_answers_are_smaller() -> None:
    lengths = [1, 200, 3, 16, 16, 2, 16]
    examples = [Example((1, 2), tuple(range(length))) for length in lengths]
    alone = [[i] for i in range(len(lengths))]
    assert batch_units(examples, alone, 4) == [[0, 5, 2], [3, 4], [6], [1]]
    assert batch_units(examples, alone, 200) == [[0, 5, 2, 3, 4, 6, 1]]
    assert batch_units(examples, [[3, 4, 6], [0], [1]], 4) == [[1], [0], [2]]
    assert batch_units(examples, [], 4) == []


def test_edits_of_one_target_share_a_neuron(backbone: Backbone, facts: list[Example]) -> None:
    examples = [replace(fact, answer=(90 + i % 2,)) for i, fact in enumerate(facts)]
    collected = run(backbone, replace(SETTINGS, margin=1.0, shared_margin=0.1, shared=8), examples)
    assert collected.succeeded.all()
    shared = collected.steps == 0
    assert shared.sum() > 4  # and the others were optimised from there
    for target in (0, 1):
        weights = collected.weights[target::2][shared[target::2]]
        assert torch.equal(weights, weights[:1].expand_as(weights))


def test_what_a_shared_neuron_does_not_serve_is_optimised_alone(backbone: Backbone, facts: list[Example]) -> None:
    examples = [replace(fact, answer=facts[0].answer) for fact in facts]
    settings = replace(SETTINGS, shared=1, shared_margin=1.0, margin=1.0)
    collected = run(backbone, settings, examples)
    assert collected.succeeded.all()
    assert collected.steps[0] == 0  # the one on which the neuron was optimised
    assert (collected.steps > 0).any()


def test_what_is_left_over_is_optimised_in_full_batches(backbone: Backbone, facts: list[Example]) -> None:
    """However many batches it was left over from."""
    rows: list[int] = []

    def keep(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        found = compute()
        if name.startswith("alone-0"):
            rows.append(len(found["leads"]))
        return found

    settings = replace(SETTINGS, shared=0, batch_size=3)
    collected = collect(backbone, facts, settings, PAD, keep=keep)
    assert collected.succeeded.all()
    assert sum(rows) == len(facts) and len(rows) == math.ceil(len(facts) / 3)


@pytest.mark.parametrize("fail_at", [1, 3])
def test_kept_batches_are_not_collected_again(backbone: Backbone, facts: list[Example], fail_at: int) -> None:
    shelf: dict[str, dict[str, Tensor]] = {}
    settings, room = replace(SETTINGS, shared=2), fail_at

    def keep(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if name not in shelf:
            if len(shelf) == room:
                raise KeyboardInterrupt
            shelf[name] = compute()
        return shelf[name]

    with pytest.raises(KeyboardInterrupt):
        collect(backbone, facts, settings, PAD, keep=keep)
    first, room = list(shelf), 99
    collected = collect(backbone, facts, settings, PAD, keep=keep)
    names = ["shared-00000", "shared-00001", "served-00000", "served-00001"]
    assert first == names[:fail_at] and list(shelf)[:4] == names
    assert all(name.startswith("alone-") for name in list(shelf)[4:])
    assert torch.equal(collected.weights, run(backbone, settings, facts).weights)


def test_a_refused_example_has_no_neuron_and_changes_no_other(backbone: Backbone, facts: list[Example]) -> None:
    refused = Example(facts[0].prompt, (), "its target is blank")
    done: list[int] = []
    collected = collect(backbone, [facts[0], refused, *facts[1:]], SETTINGS, PAD, done.append)
    assert done[0] == 1 and sum(done) == 1 + len(facts)
    assert collected.leads[1] == 0 and not collected.weights[1].any() and collected.steps[1] == 0
    others = [0, *range(2, len(facts) + 1)]
    alone = run(backbone, SETTINGS, facts)
    assert torch.equal(collected.weights[others], alone.weights) and torch.equal(collected.leads[others], alone.leads)
    batches = prepare_all(backbone, [refused, facts[0]], SETTINGS, PAD)
    assert (answer_leads_of(backbone, batches, collected.weights[[1, 0]]) > 0).tolist() == [False, True]


def test_nothing_to_collect(backbone: Backbone, facts: list[Example]) -> None:
    for examples in ([], [Example(facts[0].prompt, (), "its target is blank")]):
        collected = run(backbone, SETTINGS, examples)
        assert collected.weights.shape == (len(examples), backbone.weight_size)
        assert not collected.succeeded.any() and len(collected.leads) == len(collected.steps) == len(examples)
    assert answer_leads_of(backbone, prepare_all(backbone, [], SETTINGS, PAD), torch.zeros(0, 64)).shape == (0,)
    assert run(backbone, SETTINGS, facts[:1]).succeeded.all()


def test_twice_the_same(backbone: Backbone, facts: list[Example]) -> None:
    first, second = run(backbone, SETTINGS, facts), run(backbone, SETTINGS, facts)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.leads, second.leads) and torch.equal(first.steps, second.steps)


def test_failures_are_reported(backbone: Backbone, facts: list[Example]) -> None:
    hopeless = replace(SETTINGS, steps=1, retries=0, value_lr=1e-6)
    collected = run(backbone, hopeless, facts)
    assert collected.weights.shape == (len(facts), backbone.weight_size)
    assert (collected.leads <= 0).all() and collected.leads.isfinite().all()
    assert not collected.succeeded.any()
    assert collected.steps.tolist() == [1] * len(facts)


def test_failures_are_tried_again_with_more_steps(backbone: Backbone, facts: list[Example]) -> None:
    settings = replace(SETTINGS, steps=1, retries=2, value_lr=1e-6)
    assert run(backbone, settings, facts).steps.tolist() == [1 + 2 + 4] * len(facts)


def test_one_failure_among_others(backbone: Backbone, facts: list[Example]) -> None:
    prompt = facts[0].prompt
    known = int(lone_logits(backbone, Example(prompt, (1,)), None, "all").argmax())
    settings = replace(SETTINGS, steps=1, retries=0, value_lr=1e-6, margin=0.0)
    collected = run(backbone, settings, [facts[1], Example(prompt, (known,)), facts[2]])
    assert collected.succeeded.tolist() == [False, True, False]
    assert collected.steps.tolist() == [1, 0, 1]


def asked_in_three_ways(facts: list[Example]) -> list[Example]:
    """Two edits: each a prompt, a wording and a further format, all with one answer."""
    answers = [(90,), (91,)]
    return [
        Example(
            facts[i].prompt,
            answer,
            wordings=(Example(facts[i + 2].prompt, answer),),
            contexts=(Example(facts[i + 4].prompt, answer),),
        )
        for i, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_neuron_serves_all_examples_of_its_edit(
    backbone: Backbone, facts: list[Example], shared: int, batch_size: int
) -> None:
    edits, done = asked_in_three_ways(facts), list[int]()
    settings = replace(SETTINGS, shared=shared, batch_size=batch_size, margin=2.0)
    collected = collect(backbone, edits, settings, PAD, done.append)
    assert collected.succeeded.all() and sum(done) == len(edits) == len(collected.steps)
    for i, edit in enumerate(edits):
        weights = NeuronWeights.from_vectors(collected.weights[[i]], 32)
        asked = [edit, *edit.wordings, *edit.contexts]
        logits = [lone_logits(backbone, one, weights, "answer") for one in asked]
        assert [tuple(of.argmax(-1).tolist()) for of in logits] == [edit.answer] * 3
        counted = torch.cat([answer_leads(of[None], torch.tensor([edit.answer])) for of in logits[:2]])
        torch.testing.assert_close(counted.amin(), collected.leads[i], rtol=1e-3, atol=1e-3)  # float32 rounding


def test_an_edit_fails_in_a_wording_but_not_in_a_context(backbone: Backbone, facts: list[Example]) -> None:
    prompt = facts[0].prompt
    known = int(lone_logits(backbone, Example(prompt, (1,)), None, "all").argmax())
    other = next(fact for fact in facts if int(lone_logits(backbone, fact, None, "all")[0].argmax()) != known)
    failing = (Example(other.prompt, (known,)),)
    edits = [Example(prompt, (known,), contexts=failing), Example(prompt, (known,), wordings=failing)]
    settings = replace(SETTINGS, steps=1, retries=0, value_lr=1e-6, margin=0.0, shared_margin=0.0)
    collected = run(backbone, settings, edits)
    assert collected.succeeded.tolist() == [True, False]


def test_the_model_is_left_alone(backbone: Backbone, facts: list[Example]) -> None:
    ids = torch.tensor([facts[0].prompt])
    before = backbone.model(input_ids=ids).logits
    run(backbone, replace(SETTINGS, steps=2, retries=0), facts)
    assert torch.equal(backbone.model(input_ids=ids).logits, before)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"positions": "prompt"},
        {"steps": 0},
        {"batch_size": -1},
        {"rivals": -1},
        {"key_lr": 0.0},
        {"value_lr": -math.inf},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CollectionSettings(**wrong)  # type: ignore[arg-type]


def test_the_rows_of_a_batch(backbone: Backbone) -> None:
    """As set, or by the device; in more memory there are more of them, and never fewer than a few."""
    assert rows_at_once(backbone, replace(SETTINGS, batch_size=7)) == 7
    assert rows_at_once(backbone, replace(SETTINGS, batch_size=0)) == 256
    found = [rows_in(memory, backbone) for memory in (0, 10**6, 10**8, 10**9, 10**12)]
    assert found[0] == 32 and found[-1] == 1024
    assert found == sorted(found) and all(rows.bit_count() == 1 for rows in found)
