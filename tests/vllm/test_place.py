"""The FFN in a model that is not transformers', made to add neurons; the reference is MegEdit's own hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from megedit.errors import MegError
from megedit.lm.backbone import Backbone
from megedit.neuron import DynamicNeuron, NeuronWeights
from megedit.vllm.adapters import neuron_of
from megedit.vllm.batch import Span, Tables
from megedit.vllm.place import attach, find_layers, find_place
from tests.tiny import tiny_model

LAYER = 1
FAMILIES = ("llama", "qwen3", "gemma2", "mixtral")  # gemma2: a norm stands behind the FFN


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_dynamic_neuron(family: str) -> None:
    """Three rows of five tokens: the neurons of the first two act from the third token on."""
    torch.manual_seed(0)
    ids, vectors = torch.randint(0, 300, (3, 5)), torch.randn(2, 64)
    model = tiny_model(family)
    plain = model(ids).logits
    backbone = Backbone(model, LAYER)
    hook = DynamicNeuron(backbone.place, backbone.activation)
    with hook.active(NeuronWeights.from_vectors(vectors, 32), torch.tensor([0, 1]), torch.tensor([2, 2]), 3):
        expected = model(ids).logits
    hook.detach()
    tables = Tables(4, 20, 32, model.config.get_text_config().to_dict().get("hidden_activation") or "silu")
    names = [*model.state_dict()]
    attach(find_place(find_layers(model, 4)[LAYER]), tables)
    assert [*model.state_dict()] == names and isinstance(model, type(tiny_model(family)))
    assert torch.equal(model(ids).logits, plain)
    neurons = {str(row): neuron_of(LAYER, 2, vectors[row].numpy()) for row in range(2)}
    tables.fill([Span(str(row), 5 * row, 5, 0) for row in range(3)], neurons)
    edited = model(ids).logits
    torch.testing.assert_close(edited, expected)
    assert torch.equal(edited[2], plain[2]) and torch.equal(edited[:2, :2], plain[:2, :2])
    assert not torch.equal(edited[:2, 2:], plain[:2, 2:])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_compiled_graph_reads_what_a_step_has_filled_in(family: str) -> None:
    model = tiny_model(family)
    layer: Any = find_layers(model, 4)[LAYER]
    tables = Tables(4, 20, 32, "silu")
    attach(find_place(layer), tables)
    after = getattr(layer, "post_feedforward_layernorm", nn.Identity())
    ffn = lambda hidden: after(layer.mlp(hidden))  # noqa: E731
    compiled = torch.compile(ffn, backend="aot_eager", fullgraph=True)
    hidden = torch.randn(6, 32)
    for seed in range(3):
        weights = torch.randn(64, generator=torch.Generator().manual_seed(seed)).numpy()
        tables.drop("a")
        tables.fill([Span("a", seed, 2, 0)], {"a": neuron_of(LAYER, 0, weights)})
        torch.testing.assert_close(compiled(hidden), ffn(hidden))
        assert (compiled(hidden) != after.forward(layer.mlp.forward(hidden)) * 0).any()


class LinearBase(nn.Linear):
    """A linear module as vLLM's, which returns a bias too."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


class Layer(nn.Module):
    """A layer as vLLM's OPT: the FFN is two linear modules, its attention a child."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Sequential(LinearBase(8, 8))
        self.fc1, self.fc2 = LinearBase(8, 16), LinearBase(16, 8)
        self.final_layer_norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.fc1(x)
        output: torch.Tensor = self.fc2(hidden.relu())[0]
        return output


def test_two_linear_modules_that_return_pairs() -> None:
    layer, tables, x = Layer(), Tables(2, 4, 8, "relu"), torch.randn(3, 8)
    place, plain = find_place(layer), layer(x)
    assert (place.entry, place.exit) == (layer.fc1, layer.fc2)
    attach(place, tables)
    weights = torch.randn(16)
    tables.fill([Span("a", 1, 1, 0)], {"a": neuron_of(LAYER, 0, weights.numpy())})
    edited = layer(x)
    torch.testing.assert_close(edited[1], plain[1] + (x[1] @ weights[:8]).relu() * weights[8:])
    assert torch.equal(edited[[0, 2]], plain[[0, 2]])


def test_unknown_structures_are_refused() -> None:
    with pytest.raises(MegError, match="expected one list of 3 decoder layers, found 0"):
        find_layers(tiny_model("llama"), 3)
    with pytest.raises(MegError, match="Sequential is not a decoder layer MegEdit knows"):
        find_place(nn.Sequential(nn.LayerNorm(8)))
