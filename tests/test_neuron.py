"""The dynamic neuron: its formula, and that it touches its own row, from its own column on, and nothing else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu
from transformers import DynamicCache

from megedit.lm.backbone import Backbone
from megedit.lm.structure import Activation, FeedForward, cache_argument
from megedit.neuron import DynamicNeuron, NeuronWeights, neuron_output
from tests.tiny import FAMILIES, VOCAB_SIZE, tiny_model

HIDDEN, LAYER, ROWS, COLUMNS = 32, 2, 4, 9
LONE = torch.tensor([2])  # the one row that has a neuron, in a batch of ROWS


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone(tiny_model(request.param), LAYER)


@pytest.fixture
def neuron(backbone: Backbone) -> Iterator[DynamicNeuron]:
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    yield neuron
    neuron.detach()


def random_weights(rows: int, seed: int = 0) -> NeuronWeights:
    """Neurons that change every position: scores around 2, values far larger than the tiny model's states."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, HIDDEN, generator=generator)
    return NeuronWeights(0.1 * keys, torch.full((rows,), 2.0), values)


def some_ids(rows: int = ROWS) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (rows, COLUMNS), generator=torch.Generator().manual_seed(1))


def start_of(*columns: int) -> Tensor:
    return torch.tensor(columns)


@torch.no_grad()
def logits_of(backbone: Backbone, ids: Tensor) -> Tensor:
    logits: Tensor = backbone.model(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_vector_is_cut_into_its_parts(with_bias: bool) -> None:
    def joined(weights: NeuronWeights) -> Tensor:
        return torch.cat([weights.keys, *[weights.biases[:, None]] * with_bias, weights.values], dim=1)

    vectors = torch.randn(5, 2 * HIDDEN + with_bias)
    weights = NeuronWeights.from_vectors(vectors, HIDDEN)
    assert weights.keys.shape == weights.values.shape == (5, HIDDEN)
    assert torch.equal(joined(weights), vectors)
    assert with_bias or not weights.biases.any()
    chosen = weights[torch.tensor([3, 1])]
    assert len(chosen) == 2
    assert torch.equal(joined(chosen), vectors[[3, 1]])


@pytest.mark.parametrize("width", [2 * HIDDEN - 1, 2 * HIDDEN + 2, HIDDEN])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width {width} does not fit the hidden size {HIDDEN}"):
        NeuronWeights.from_vectors(torch.zeros(1, width), HIDDEN)


@pytest.mark.parametrize("activation", [silu, gelu])
def test_the_formula(activation: Activation) -> None:
    weights = NeuronWeights(torch.randn(2, 3), torch.randn(2), torch.randn(2, 3))
    hidden = torch.randn(2, 4, 3)
    added = neuron_output(hidden, weights, activation)
    assert added.shape == (2, 4, 3)
    for row in range(2):
        for position in range(4):
            score = weights.keys[row] @ hidden[row, position] + weights.biases[row]
            expected = activation(score) * weights.values[row]
            torch.testing.assert_close(added[row, position], expected)  # only the order of the sums differs


def test_half_precision_is_added_in_float32() -> None:
    weights = random_weights(1)
    mlp = nn.Linear(HIDDEN, HIDDEN).bfloat16().requires_grad_(False)
    hidden = torch.randn(2, 3, HIDDEN).bfloat16()
    plain = mlp(hidden)
    neuron = DynamicNeuron(FeedForward(mlp, mlp, mlp), silu)
    with neuron.active(weights, torch.tensor([1]), start_of(0), 2):
        edited = mlp(hidden)
    added = neuron_output(hidden[1:], weights, silu)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited[0], plain[0])
    assert torch.equal(edited[1:], (plain[1:].float() + added).bfloat16())


def test_idle_changes_no_bit(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids = some_ids()
    hooked = logits_of(backbone, ids)
    nothing = random_weights(0)
    with neuron.active(nothing, torch.tensor([], dtype=torch.long), start_of(), ROWS):
        no_rows = logits_of(backbone, ids)
    neuron.detach()
    assert torch.equal(hooked, logits_of(backbone, ids))
    assert torch.equal(no_rows, hooked)


def test_rows_without_a_neuron_keep_every_bit(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids = some_ids()
    plain = logits_of(backbone, ids)
    with neuron.active(random_weights(1), LONE, start_of(0), ROWS):
        edited = logits_of(backbone, ids)
    others = [0, 1, 3]
    assert torch.equal(edited[others], plain[others])
    assert not torch.isclose(edited[2], plain[2]).all(-1).any()  # every position of row 2 is changed


def test_a_neuron_never_changes_another_row(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, rows, start = some_ids(), torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)
    weights = random_weights(ROWS)
    with neuron.active(weights, rows, start, ROWS):
        before = logits_of(backbone, ids)
    changed = weights[rows]  # a copy
    changed.values[1] += 1
    with neuron.active(changed, rows, start, ROWS):
        after = logits_of(backbone, ids)
    others = [0, 2, 3]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])


def test_the_order_of_the_rows_is_free(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, weights, start = some_ids(), random_weights(2), start_of(1, 4)
    with neuron.active(weights, torch.tensor([0, 3]), start, ROWS):
        forward = logits_of(backbone, ids)
    order = torch.tensor([1, 0])
    with neuron.active(weights[order], torch.tensor([3, 0]), start[order], ROWS):
        torch.testing.assert_close(logits_of(backbone, ids), forward)


def test_zero_weights_change_no_bit(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids = some_ids()
    plain = logits_of(backbone, ids)
    zero = NeuronWeights.from_vectors(torch.zeros(ROWS, 2 * HIDDEN), HIDDEN)
    with neuron.active(zero, torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long), ROWS):
        assert torch.equal(logits_of(backbone, ids), plain)


def test_half_precision_keeps_every_bit_too(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids = some_ids()
    backbone.model.bfloat16()
    plain = logits_of(backbone, ids)
    assert plain.dtype == torch.bfloat16
    with neuron.active(random_weights(1), LONE, start_of(0), ROWS):
        edited = logits_of(backbone, ids)
    assert torch.equal(edited[[0, 1, 3]], plain[[0, 1, 3]]) and not torch.equal(edited[2], plain[2])
    zero = NeuronWeights.from_vectors(torch.zeros(ROWS, 2 * HIDDEN), HIDDEN)
    with neuron.active(zero, torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long), ROWS):
        assert torch.equal(logits_of(backbone, ids), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(backbone: Backbone, neuron: DynamicNeuron, side: str) -> None:
    """A shorter row among others has the logits that it has alone."""
    ids, weights, length = some_ids(2), random_weights(1), 6
    mask = torch.ones_like(ids)
    first = COLUMNS - length if side == "left" else 0
    mask[0, :first], mask[0, first + length :] = 0, 0
    with neuron.active(weights, torch.tensor([0]), start_of(first + 2), 2), torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = backbone.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    row = slice(first, first + length)
    with neuron.active(weights, torch.tensor([0]), start_of(2), 1):
        alone = logits_of(backbone, ids[:1, row])
    torch.testing.assert_close(padded[:1, row], alone, rtol=1e-4, atol=1e-5)  # float32 rounding


def test_columns_before_the_start_are_untouched(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, outputs = some_ids(2), list[Tensor]()

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hook = backbone.layers[LAYER].register_forward_hook(keep)
    plain = logits_of(backbone, ids)
    with neuron.active(random_weights(2), torch.arange(2), start_of(3, 7), 2):
        edited = logits_of(backbone, ids)
    hook.remove()
    for row, start in enumerate((3, 7)):
        assert torch.equal(outputs[0][row, :start], outputs[1][row, :start])
        assert not torch.isclose(outputs[0][row, start:], outputs[1][row, start:]).all(-1).any()
        torch.testing.assert_close(edited[row, :start], plain[row, :start])  # later columns are never seen


def test_decoding_with_a_cache_equals_one_pass(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, weights, start = some_ids(), random_weights(2), start_of(2, 6)
    rows = torch.tensor([1, 3])
    with neuron.active(weights, rows, start, ROWS):
        whole = logits_of(backbone, ids)

    own, cache, pieces = cache_argument(backbone.model), DynamicCache(), []
    with neuron.active(weights, rows, start, ROWS), torch.no_grad():
        for first, last in ((0, 5), (5, 6), (6, 7), (7, 9)):
            output = backbone.model(input_ids=ids[:, first:last], use_cache=True, **{own: cache})
            pieces.append(output.logits)
    # the same sums in another order: float32 rounding
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_entering_with_a_filled_cache(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, weights, start = some_ids(), random_weights(1), start_of(6)
    with neuron.active(weights, LONE, start, ROWS):
        whole = logits_of(backbone, ids)
    own, cache = cache_argument(backbone.model), DynamicCache()
    with torch.no_grad():
        backbone.model(input_ids=ids[:, :5], use_cache=True, **{own: cache})
        with neuron.active(weights, LONE, start, ROWS, column=5):
            rest = backbone.model(input_ids=ids[:, 5:], use_cache=True, **{own: cache}).logits
    torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-4, atol=1e-5)  # float32 rounding


def test_copies_of_a_row_have_its_neuron(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, weights, rows, start = some_ids(), random_weights(2), torch.tensor([3, 0]), start_of(2, 5)
    with neuron.active(weights, rows, start, ROWS):
        single = logits_of(backbone, ids)
    with neuron.active(weights, rows, start, ROWS):
        copies = logits_of(backbone, ids.repeat_interleave(3, dim=0))
    torch.testing.assert_close(copies, single.repeat_interleave(3, dim=0), rtol=1e-4, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 1},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 3},
    ],
    ids=["greedy", "beams", "samples"],
)
def test_generate_maps_rows_right(family: str, options: dict[str, object]) -> None:
    """A row is answered in a batch as it is alone, with its neuron or without."""
    backbone = Backbone(tiny_model(family), LAYER)
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    ids, rows, weights = some_ids(), torch.tensor([0, 2]), random_weights(2)
    weights.values.mul_(10)
    copies = int(str(options.get("num_return_sequences", 1)))

    def generate(ids: Tensor) -> Tensor:
        torch.manual_seed(0)
        mask = torch.ones_like(ids)
        output = backbone.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, **options
        )
        return output[:, COLUMNS:].unflatten(0, (len(ids), copies))  # type: ignore[no-any-return]

    plain = generate(ids)
    with neuron.active(weights, rows, start_of(COLUMNS - 1, COLUMNS - 1), ROWS):
        edited = generate(ids)
    assert torch.equal(edited[[1, 3]], plain[[1, 3]])
    for i, row in enumerate(rows.tolist()):
        assert not torch.equal(edited[row], plain[row])
        with neuron.active(weights[[i]], torch.tensor([0]), start_of(COLUMNS - 1), 1):
            assert torch.equal(generate(ids[[row]])[0], edited[row])


def test_the_context_ends_with_an_exception_too(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids = some_ids()
    plain = logits_of(backbone, ids)
    with pytest.raises(KeyboardInterrupt), neuron.active(random_weights(1), LONE, start_of(0), ROWS):
        raise KeyboardInterrupt
    assert torch.equal(logits_of(backbone, ids), plain)


def test_contexts_can_be_nested(backbone: Backbone, neuron: DynamicNeuron) -> None:
    ids, weights, outer = some_ids(), random_weights(1), torch.tensor([0])
    with neuron.active(weights, outer, start_of(0), ROWS):
        expected = logits_of(backbone, ids)
    with neuron.active(weights, outer, start_of(0), ROWS):
        with neuron.active(weights, LONE, start_of(0), ROWS):
            assert not torch.equal(logits_of(backbone, ids), expected)
        assert torch.equal(logits_of(backbone, ids), expected)


def test_detach_restores_the_model(backbone: Backbone) -> None:
    ids, hooks = some_ids(), hooks_of(backbone)
    plain = logits_of(backbone, ids)
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    assert hooks_of(backbone) == hooks + 3
    with neuron.active(random_weights(1), LONE, start_of(0), ROWS):
        neuron.detach()
        assert torch.equal(logits_of(backbone, ids), plain)
    assert hooks_of(backbone) == hooks


def hooks_of(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.layers[LAYER].modules())


class TupleMLP(nn.Module):
    """An MLP that returns something beside its output, as mixture-of-experts layers do."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return 2 * hidden, "router logits"


def test_tuple_outputs() -> None:
    mlp, hidden, weights = TupleMLP(), torch.randn(2, 3, HIDDEN), random_weights(1)
    neuron = DynamicNeuron(FeedForward(mlp, mlp, mlp), silu)
    with neuron.active(weights, torch.tensor([0]), start_of(0), 2):
        output, beside = mlp(hidden)
    assert beside == "router logits"
    assert torch.equal(output[1], 2 * hidden[1])
    assert torch.equal(output[0], 2 * hidden[0] + neuron_output(hidden[:1], weights, silu)[0])


def test_a_compiled_model_is_not_compiled_anew_for_every_column() -> None:
    """The number of the column is no constant of the compiled code."""
    backbone = Backbone(tiny_model("llama"), LAYER)
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    ids, weights, rows, start = some_ids(), random_weights(ROWS), torch.arange(ROWS), torch.full((ROWS,), 3)
    with neuron.active(weights, rows, start, ROWS):
        expected = logits_of(backbone, ids)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(backbone.model, backend=backend)
    own, cache, pieces, counts = cache_argument(backbone.model), DynamicCache(), [], []
    with neuron.active(weights, rows, start, ROWS), torch.no_grad():
        for column in range(COLUMNS):
            pieces.append(compiled(input_ids=ids[:, column : column + 1], use_cache=True, **{own: cache}).logits)
            counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[3] == counts[-1]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-5)  # float32 rounding
