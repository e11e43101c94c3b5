"""Where the neuron goes in a causal language model, and running the model in two halves around that place.

The decoder layers and the MLP are found from the model's structure. The two halves are the model's own forward
pass: the prefix is stopped after the chosen layer, and the suffix is the same forward pass with the layers up to
the chosen one bypassed, so that masks, positions, norms and the output head are never written again here.

    prefix (once)                               suffix (many times)
    embeddings - layers 0..l-1 - layer l ----->  layer output + neuron - layers l+1.. - norm - head -> logits
                                 MLP input h ->  k, b, v

Supported: every model whose layer adds the MLP's output to the residual stream (Llama-like, GPT-2-like).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from megedit.errors import MegError
from megedit.neuron import Activation

_MLP = re.compile(r"mlp|ffn|feed_?forward", re.IGNORECASE)
_NORM_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_NEW_FAMILY = "see 'Add a model family' in docs/development.md"


@dataclass(frozen=True)
class Split:
    """A batch frozen at the chosen layer: everything the suffix needs.

    mlp_input: (rows, positions, d), what the neuron reads. layer_output: (rows, positions, d), to which its
    output is added. inputs: the arguments of the model's forward pass for these positions. cache: keys and
    values of earlier positions, or None.
    """

    mlp_input: Tensor
    layer_output: Tensor
    inputs: dict[str, Tensor]
    cache: Cache | None

    def __getitem__(self, rows: Tensor) -> Split:
        return Split(
            self.mlp_input[rows],
            self.layer_output[rows],
            {name: tensor[rows] for name, tensor in self.inputs.items()},
            None if self.cache is None else _frozen(self.cache, rows=rows),
        )


class Backbone:
    """A causal LM seen as: layers below the neuron's MLP, that MLP, layers above it.

    Raises MegError when the structure is not recognised or the layer is out of range.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self.model = model
        self.layers = find_decoder_layers(model)
        if not 0 <= layer < len(self.layers):
            raise MegError(
                f"Layer {layer} is out of range: {type(model).__name__} has layers 0 to {len(self.layers) - 1}."
            )
        self.layer = layer
        self.mlp = find_mlp(self.layers[layer])
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.activation = find_activation(model)
        linears = [module for module in self.mlp.modules() if isinstance(module, nn.Linear | Conv1D)]
        self.has_bias = any(linear.bias is not None for linear in linears)

    @property
    def device(self) -> torch.device:
        return next(self.mlp.parameters()).device

    @property
    def weight_size(self) -> int:
        """Length of one neuron's weight vector: 2d, or 2d + 1 where the model's MLPs have biases."""
        return 2 * self.hidden_size + int(self.has_bias)

    @torch.no_grad()
    def context(self, inputs: dict[str, Tensor], cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of all layers for positions that the neuron never touches.

        inputs: as in `prefix`. cache: what an earlier call returned; it grows.
        """
        cache = DynamicCache() if cache is None else cache
        self.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        return cache

    @torch.no_grad()
    def prefix(self, inputs: dict[str, Tensor], cache: Cache | None = None) -> Split:
        """Run the frozen half: everything up to and including the chosen layer.

        inputs: `input_ids` and `position_ids` int64 (rows, positions), `attention_mask` int64 (rows, cached +
        positions). cache: what `context` returned for the earlier positions; it is not changed.
        """
        frozen = None if cache is None else _frozen(cache)
        captured: dict[str, Tensor] = {}

        def keep_mlp_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            captured["mlp_input"] = args[0]

        def stop_after_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["layer_output"] = output[0] if isinstance(output, tuple) else output
            raise _PrefixDone

        hooks = [
            self.mlp.register_forward_pre_hook(keep_mlp_input),
            self.layers[self.layer].register_forward_hook(stop_after_layer),
        ]
        try:
            self.model(**inputs, past_key_values=frozen, use_cache=frozen is not None)
        except _PrefixDone:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        above = None if cache is None else _frozen(cache, drop_up_to=self.layer)
        return Split(captured["mlp_input"], captured["layer_output"], inputs, above)

    def suffix(
        self, split: Split, added: Tensor | None, last_positions: int, vocabulary: Tensor | None = None
    ) -> Tensor:
        """Run the other half with `added` (float32 (rows, positions, d)) added to the chosen layer's output.

        Returns the logits of the last `last_positions` positions: (rows, last_positions, vocabulary), in the
        model's dtype; with `vocabulary` (int64 (tokens,)) those of these tokens only. Differentiable with respect
        to `added`.
        """
        hidden = split.layer_output
        if added is not None:
            hidden = (hidden.float() + added).to(hidden.dtype)
        lower = self.layers[: self.layer + 1]
        head = [] if vocabulary is None else [self.model.get_output_embeddings()]

        def some_logits(hidden_states: Tensor) -> Tensor:
            bias = head[0].bias
            return F.linear(hidden_states, head[0].weight[vocabulary], None if bias is None else bias[vocabulary])

        with _forward_replaced(lower, lambda *args, **kwargs: hidden), _forward_replaced(head, some_logits):
            output = self.model(
                **split.inputs,
                past_key_values=split.cache,
                use_cache=split.cache is not None,
                logits_to_keep=last_positions,
            )
        logits: Tensor = output.logits
        return logits

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within the context, attention is plain matrix products.

        The fused kernel's backward pass is several times slower on a CPU for a handful of query positions.
        """
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(implementation)


@contextmanager
def _forward_replaced(modules: Iterable[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Within the context, calling one of the modules runs `forward` instead."""
    replaced = [(module, vars(module).get("forward")) for module in modules]  # set where accelerate has placed it
    for module, _ in replaced:
        module.forward = forward
    try:
        yield
    finally:
        for module, own in replaced:
            del module.forward
            if own is not None:
                module.forward = own


class _PrefixDone(Exception):
    """Ends the forward pass once the chosen layer has run."""


class _FrozenLayer(DynamicLayer):
    """Cached keys and values that are read and never grow: `update` returns them with the new ones appended."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None, "a dropped layer is never run"
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


def _frozen(cache: Cache, rows: Tensor | None = None, drop_up_to: int = -1) -> Cache:
    """A read-only view of a cache, of some rows only, without the tensors of layers that will not run."""
    length = cache.get_seq_length()

    def layer(index: int) -> _FrozenLayer:
        source = cache.layers[index]
        assert isinstance(source, DynamicLayer), "the caches here are made by `context` or by this function"
        keys, values = source.keys, source.values
        if keys is None or values is None or index <= drop_up_to:
            return _FrozenLayer(None, None, length)
        return _FrozenLayer(keys if rows is None else keys[rows], values if rows is None else values[rows], length)

    return Cache(layers=[layer(index) for index in range(len(cache.layers))])


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the module list as long as the configuration says, all of one class."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(child) for child in module}) == 1
    ]
    if len(found) != 1:
        raise MegError(
            f"{type(model).__name__} is not a model family MegEdit knows: expected one list of {depth} decoder "
            f"layers, found {len(found)}; {_NEW_FAMILY}."
        )
    return found[0]


def find_mlp(layer: nn.Module) -> nn.Module:
    """The MLP of a decoder layer, whose output must be added to the residual stream as it is."""
    found = [
        module for name, module in layer.named_children() if _MLP.search(name) or _MLP.search(type(module).__name__)
    ]
    found = [module for module in found if any(isinstance(part, nn.Linear | Conv1D) for part in module.modules())]
    if len(found) != 1 or any(hasattr(layer, name) for name in _NORM_AFTER_MLP):
        raise MegError(
            f"{type(layer).__name__} is not a decoder layer MegEdit knows: expected one MLP added straight to the "
            f"residual stream; {_NEW_FAMILY}."
        )
    return found[0]


def find_activation(model: PreTrainedModel) -> Activation:
    """The activation function of the model's MLPs, which the neuron shares."""
    config = model.config.get_text_config()
    name = next(
        (value for key in ("hidden_act", "activation_function") if (value := getattr(config, key, None))),
        None,
    )
    if name not in ACT2FN:
        raise MegError(f"The activation function of {type(model).__name__} is not known; {_NEW_FAMILY}.")
    activation: Activation = ACT2FN[name]
    return activation
