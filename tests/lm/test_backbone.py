"""The two halves of a model: together they are the model, and they leave it and the cache as they were."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from megedit.errors import MegError
from megedit.lm.backbone import Backbone
from megedit.lm.structure import cache_argument, find_activation
from megedit.neuron import DynamicNeuron, NeuronWeights, neuron_output
from tests.tiny import FAMILIES, VOCAB_SIZE, tiny_model

HIDDEN, LAYERS, ROWS, COLUMNS, PADDED = 32, 4, 3, 9, 2
CUT = 5  # columns in the cache where there is one


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


PLACES = [(family, layer) for family in FAMILIES for layer in ((0, 2, 3) if family in ("llama", "gpt2") else (2,))]


@pytest.fixture(params=PLACES, ids=[f"{family}-{layer}" for family, layer in PLACES])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    family, layer = request.param
    return Backbone(tiny_model(family), layer)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Three rows; the first one has two columns of padding on its left."""
    ids = torch.randint(3, VOCAB_SIZE, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :PADDED] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def columns(inputs: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """A block of columns; its attention mask reaches back to the first one."""
    block = {name: tensor[:, first:last] for name, tensor in inputs.items()}
    return {**block, "attention_mask": inputs["attention_mask"][:, :last]}


def some_neurons() -> NeuronWeights:
    keys, values = torch.randn(2, ROWS, HIDDEN, generator=torch.Generator().manual_seed(2))
    return NeuronWeights(0.1 * keys, torch.full((ROWS,), 2.0), values)


@torch.no_grad()
def whole_pass(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    logits: Tensor = backbone.model(**inputs, use_cache=False).logits
    return logits


def hooked_pass(backbone: Backbone, inputs: dict[str, Tensor], weights: NeuronWeights, start: int) -> Tensor:
    neuron = DynamicNeuron(backbone.place, backbone.activation)
    with neuron.active(weights, torch.arange(ROWS), torch.full((ROWS,), start), ROWS):
        logits: Tensor = backbone.model(**inputs).logits
    neuron.detach()
    return logits


def states(cache: DynamicCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # type: ignore[union-attr,misc]


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float32 rounding: the same sums, over blocks of other shapes."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_halves_are_the_model(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    whole = whole_pass(backbone, inputs)
    split = backbone.prefix(inputs)
    assert split.cache is None
    logits = backbone.suffix(split, None, COLUMNS)
    assert torch.equal(logits[1:], whole[1:])
    assert torch.equal(logits[0, PADDED:], whole[0, PADDED:])  # the logits of padding are never read
    close(backbone.suffix(split, None, 2), whole[:, -2:])


def test_the_halves_are_the_model_with_a_context(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    cache = backbone.context(columns(inputs, 0, CUT))
    split = backbone.prefix(columns(inputs, CUT, COLUMNS), cache)
    logits = backbone.suffix(split, None, COLUMNS - CUT)
    close(logits, whole_pass(backbone, inputs)[:, CUT:])


def test_a_context_may_grow(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    cache = backbone.context(columns(inputs, 0, 3))
    assert backbone.context(columns(inputs, 3, CUT), cache) is cache
    for grown, once in zip(states(cache), states(backbone.context(columns(inputs, 0, CUT))), strict=True):
        close(grown[1:], once[1:])
        close(grown[0, :, PADDED:], once[0, :, PADDED:])


def test_input_and_output_of_the_ffn(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    hooks = [
        backbone.place.entry.register_forward_pre_hook(lambda module, args: seen.update(input=args[0].clone())),
        backbone.place.exit.register_forward_hook(lambda module, args, output: seen.update(output=output.clone())),
    ]
    whole_pass(backbone, inputs)
    for hook in hooks:
        hook.remove()
    split = backbone.prefix(inputs)
    assert split.ffn_input.shape == split.ffn_output.shape == (ROWS, COLUMNS, HIDDEN)
    assert torch.equal(split.ffn_input.flatten(), seen["input"].flatten())
    assert torch.equal(split.ffn_output.flatten(), seen["output"].flatten())


@pytest.mark.parametrize("cached", [0, CUT])
def test_a_neuron_in_the_suffix_is_the_hooked_neuron(
    backbone: Backbone, inputs: dict[str, Tensor], cached: int
) -> None:
    weights = some_neurons()
    cache = backbone.context(columns(inputs, 0, cached)) if cached else None
    split = backbone.prefix(columns(inputs, cached, COLUMNS), cache)
    added = neuron_output(split.ffn_input, weights, backbone.activation)
    logits = backbone.suffix(split, added, COLUMNS - cached)
    with torch.no_grad():
        expected = hooked_pass(backbone, inputs, weights, cached)[:, cached:]
    close(logits[1:], expected[1:])
    close(logits[0, PADDED:], expected[0, PADDED:])
    assert not torch.allclose(logits[1:], whole_pass(backbone, inputs)[1:, cached:], atol=1e-3)


def test_the_gradient_is_that_of_the_hooked_neuron(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    neurons = some_neurons()
    vectors = torch.cat([neurons.keys, neurons.biases[:, None], neurons.values], dim=1).requires_grad_(True)
    target = torch.tensor([10, 20, 30])

    def gradient(logits: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(nn.functional.cross_entropy(logits[:, -1], target), vectors)
        return result / result.abs().max()

    weights = NeuronWeights.from_vectors(vectors, HIDDEN)
    expected = gradient(hooked_pass(backbone, inputs, weights, CUT))
    weights = NeuronWeights.from_vectors(vectors, HIDDEN)
    split = backbone.prefix(columns(inputs, CUT, COLUMNS), backbone.context(columns(inputs, 0, CUT)))
    added = neuron_output(split.ffn_input, weights, backbone.activation)
    close(gradient(backbone.suffix(split, added, 1)), expected)


def test_nothing_is_left_in_the_cache(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    cache = backbone.context(columns(inputs, 0, CUT))
    before = [tensor.clone() for tensor in states(cache)]
    block = columns(inputs, CUT, COLUMNS)
    split, again = backbone.prefix(block, cache), backbone.prefix(block, cache)
    assert torch.equal(split.ffn_output, again.ffn_output)
    first = backbone.suffix(split, None, COLUMNS - CUT)
    assert torch.equal(backbone.suffix(split, None, COLUMNS - CUT), first)
    assert torch.equal(backbone.suffix(again, None, COLUMNS - CUT), first)
    assert cache.get_seq_length() == CUT
    assert all(torch.equal(a, b) for a, b in zip(states(cache), before, strict=True))


@pytest.mark.parametrize("cached", [0, CUT])
def test_rows_of_a_split(backbone: Backbone, inputs: dict[str, Tensor], cached: int) -> None:
    cache = backbone.context(columns(inputs, 0, cached)) if cached else None
    split = backbone.prefix(columns(inputs, cached, COLUMNS), cache)
    logits = backbone.suffix(split, None, 2)
    for rows in ([2, 0], [1]):
        close(backbone.suffix(split[torch.tensor(rows)], None, 2), logits[rows])
    twice = split[torch.tensor([2, 0])][torch.tensor([1])]
    close(backbone.suffix(twice, None, 2), logits[:1])


@pytest.mark.parametrize("cached", [0, CUT])
def test_no_rows(model: PreTrainedModel, inputs: dict[str, Tensor], cached: int) -> None:
    backbone, none = Backbone(model, 1), torch.zeros(0, dtype=torch.long)
    nothing = {name: tensor[:0] for name, tensor in inputs.items()}
    cache = backbone.context(columns(nothing, 0, cached)) if cached else None
    whole = backbone.prefix(inputs)
    for split in (backbone.prefix(columns(nothing, cached, COLUMNS), cache), whole[none]):
        assert split.ffn_input.shape[0] == 0 and split.ffn_input.shape[2] == HIDDEN
        logits = backbone.suffix(split, None, 3)
        assert logits.shape == (0, 3, VOCAB_SIZE) and logits.dtype == model.dtype
        assert backbone.suffix(split, torch.zeros_like(split.ffn_input), 3, torch.tensor([4, 5])).shape == (0, 3, 2)


def test_the_cache_is_passed_under_the_name_that_the_model_knows(
    model: PreTrainedModel, inputs: dict[str, Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    backbone = Backbone(model, 1)
    for module in (model, model.base_model):
        assert cache_argument(module) in inspect.signature(module.forward).parameters
    cache = backbone.context(columns(inputs, 0, CUT))
    assert cache.get_seq_length() == CUT
    backbone.suffix(backbone.prefix(columns(inputs, CUT, COLUMNS), cache), None, 1)
    assert [str(warning.message) for warning in recwarn if "deprecated" in str(warning.message)] == []


@pytest.mark.parametrize("half", ["prefix", "suffix"])
def test_the_model_is_restored_after_an_exception(backbone: Backbone, inputs: dict[str, Tensor], half: str) -> None:
    whole = whole_pass(backbone, inputs)
    split = backbone.prefix(inputs)
    call: Callable[[], Any] = {
        "prefix": lambda: backbone.prefix(inputs),
        "suffix": lambda: backbone.suffix(split, None, 1),
    }[half]
    place = backbone.layers[0] if half == "prefix" else backbone.model.get_output_embeddings()

    def fail(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise RuntimeError("out of memory")

    hook = place.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        call()
    hook.remove()
    assert torch.equal(whole_pass(backbone, inputs), whole)
    for module in backbone.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_replaced_forward_is_put_back(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    backbone = Backbone(model, 1)
    ran = []
    original = backbone.layers[0].forward

    def placed(*args: Any, **kwargs: Any) -> Any:  # as accelerate replaces it to move the inputs to a device
        ran.append(1)
        return original(*args, **kwargs)

    backbone.layers[0].forward = placed
    split = backbone.prefix(inputs)
    assert ran == [1]
    backbone.suffix(split, None, 1)
    assert ran == [1]
    assert backbone.layers[0].forward is placed


def test_plain_attention_is_undone(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    backbone = Backbone(model, 1)
    before, whole = model.config._attn_implementation, whole_pass(backbone, inputs)
    with pytest.raises(KeyboardInterrupt), backbone.plain_attention():
        assert model.config._attn_implementation == "eager"
        close(whole_pass(backbone, inputs)[1:], whole[1:])
        raise KeyboardInterrupt
    assert model.config._attn_implementation == before != "eager"
    assert torch.equal(whole_pass(backbone, inputs), whole)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_out_of_range(model: PreTrainedModel, layer: int) -> None:
    with pytest.raises(MegError, match=rf"Layer {layer} is out of range: {type(model).__name__} has layers 0 to 3"):
        Backbone(model, layer)


def test_the_families() -> None:
    llama, gpt2 = Backbone(tiny_model("llama"), 1), Backbone(tiny_model("gpt2"), 1)
    assert (llama.hidden_size, llama.has_bias, llama.weight_size) == (HIDDEN, False, 2 * HIDDEN)
    assert (gpt2.hidden_size, gpt2.has_bias, gpt2.weight_size) == (HIDDEN, True, 2 * HIDDEN + 1)
    scores = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(llama.activation(scores), nn.functional.silu(scores))
    torch.testing.assert_close(gpt2.activation(scores), nn.functional.gelu(scores, approximate="tanh"))
    assert llama.device == torch.device("cpu")


SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def unknown_models() -> Iterator[tuple[str, Callable[[], PreTrainedModel], str]]:
    def two_experts() -> PreTrainedModel:
        model = tiny_model("llama")
        model.model.layers[1].ffn = nn.Linear(HIDDEN, HIDDEN)
        return model

    def no_ffn() -> PreTrainedModel:
        model = tiny_model("llama")
        del model.model.layers[1].mlp
        return model

    def t5() -> PreTrainedModel:
        return T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
        )

    yield "two FFNs", two_experts, "LlamaDecoderLayer is not a decoder layer MegEdit knows: .* found 2"
    yield "no FFN", no_ffn, "LlamaDecoderLayer is not a decoder layer MegEdit knows: .* found 0"
    yield "an encoder too", t5, "T5ForConditionalGeneration is not a model family MegEdit knows.* found 0"


@pytest.mark.parametrize(("what", "build", "message"), unknown_models())
def test_unknown_structures(what: str, build: Callable[[], PreTrainedModel], message: str) -> None:
    with pytest.raises(MegError, match=message):
        Backbone(build(), 1)


def test_an_unknown_activation() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2))
    model.config.hidden_act = "sine"
    with pytest.raises(MegError, match="activation function of a llama model is not known"):
        find_activation(model)
