"""Where the neuron goes in a causal language model, and running the model in two halves around that place.

The decoder layers and the FFN are found from the model's structure. The two halves are the model's own forward
pass: the prefix is stopped where the FFN of the chosen layer has run, and the suffix is the same forward pass with the
layers below the chosen one and its FFN bypassed, so that masks, positions, norms, residual sums and the output head are
never written again here, and whatever a family does with the FFN's output is done with the neuron's too.

    prefix (once)                                    suffix (many times)
    embeddings - layers 0..l-1 - layer l's FFN --->  layer l, its FFN's output + neuron - layers l+1.. - head -> logits
                                 FFN input h   --->  k, b, v
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from megedit.errors import MegError
from megedit.lm.structure import (
    cache_argument,
    find_activation,
    find_decoder_layers,
    find_feed_forward,
    first_input,
    has_local_attention,
)


@dataclass(frozen=True)
class Lower:
    """A batch frozen below the chosen layer: what the layers from there on need.

    below: (rows, positions, d), what the chosen layer gets from the one below; None in layer 0. inputs: the arguments
    of the model's forward pass for these positions. cache: keys and values of earlier positions, or None. layer_form:
    makes of hidden states what a layer of this model returns.
    """

    below: Tensor | None
    inputs: dict[str, Tensor]
    cache: Cache | None
    layer_form: Callable[[Tensor], Any]

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(
            self,
            below=None if self.below is None else self.below[rows],
            inputs={name: tensor[rows] for name, tensor in self.inputs.items()},
            cache=None if self.cache is None else frozen(self.cache, rows=rows),
        )


@dataclass(frozen=True)
class Split(Lower):
    """A batch frozen at the FFN of the chosen layer: everything the suffix needs.

    ffn_input: (rows, positions, d), what the neuron reads. ffn_output: the same shape, to which its output is added.
    ffn_form: makes of hidden states what an FFN of this model returns.
    """

    ffn_input: Tensor
    ffn_output: Tensor
    ffn_form: Callable[[Tensor], Any]

    def __getitem__(self, rows: Tensor) -> Self:
        frozen_below = super().__getitem__(rows)
        return replace(frozen_below, ffn_input=self.ffn_input[rows], ffn_output=self.ffn_output[rows])


class Backbone:
    """A causal LM seen as: what runs before the neuron's FFN, that FFN, what runs after it.

    While `prefix` or `suffix` runs, modules of the model have hooks or another forward pass, so the model must not be
    used by another thread. Raises MegError when the structure is not recognised or the layer is out of range.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self.model = model
        self.layers = find_decoder_layers(model)
        if not 0 <= layer < len(self.layers):
            raise MegError(
                f"Layer {layer} is out of range: {type(model).__name__} has layers 0 to {len(self.layers) - 1}."
            )
        self.layer = layer
        self.place = find_feed_forward(self.layers[layer])
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.activation = find_activation(model)
        self.local_attention = has_local_attention(model)
        ends = (self.place.entry, self.place.exit)
        self.has_bias = any(name.endswith("bias") for module in ends for name, _ in module.named_parameters())

    @property
    def device(self) -> torch.device:
        return next(self.place.exit.parameters()).device

    @property
    def weight_size(self) -> int:
        """Length of one neuron's weight vector: 2d, or 2d + 1 where the model's FFNs have biases."""
        return 2 * self.hidden_size + int(self.has_bias)

    @torch.no_grad()
    def context(self, inputs: dict[str, Tensor], cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of all layers for positions that the neuron never touches.

        inputs: as in `prefix`. cache: what an earlier call returned; it grows.
        """
        cache = DynamicCache() if cache is None else cache
        if len(inputs["input_ids"]):
            self.model.base_model(**inputs, **{cache_argument(self.model.base_model): cache}, use_cache=True)
        return cache

    @torch.no_grad()
    def prefix(self, inputs: dict[str, Tensor], cache: Cache | None = None) -> Split:
        """Run the frozen half: everything up to and including the FFN of the chosen layer.

        inputs: `input_ids` and `position_ids` int64 (rows, positions), `attention_mask` int64 (rows, cached +
        positions). cache: what `context` returned for the earlier positions; it is not changed.
        """
        if not len(inputs["input_ids"]):
            return self._no_rows(inputs)
        earlier = None if cache is None else frozen(cache)
        kept: dict[str, Any] = {"below": None, "layer_form": _plain}

        # 1. Hooks that keep what comes out of the layer below, what enters the FFN and what leaves it
        def keep_below(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            kept["below"], kept["layer_form"] = _parts(output)  # (rows, positions, d)

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept["ffn_input"] = first_input(args, kwargs)  # (rows, positions, d) or (rows * positions, d)

        def stop_after_ffn(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            kept["ffn_output"], kept["ffn_form"] = _parts(output)  # shaped as the FFN's input
            raise _PrefixDone

        hooks = [
            self.place.entry.register_forward_pre_hook(keep_input, with_kwargs=True),
            self.place.exit.register_forward_hook(stop_after_ffn),
        ]
        if self.layer:
            hooks.append(self.layers[self.layer - 1].register_forward_hook(keep_below))

        # 2. The model's own forward pass, up to the end of that FFN
        self._run(inputs, earlier, hooks)

        # 3. What the suffix needs
        for name in ("ffn_input", "ffn_output"):
            kept[name] = kept[name].reshape(*inputs["input_ids"].shape, -1)  # (rows, positions, d)
        return Split(**kept, inputs=inputs, cache=self._above(cache))

    @torch.no_grad()
    def lower(self, inputs: dict[str, Tensor], cache: Cache | None = None) -> Lower:
        """Run the layers below the chosen one; arguments as in `prefix`."""
        kept: list[tuple[Tensor | None, Callable[[Tensor], Any]]] = [(None, _plain)]

        def stop_behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            kept[0] = _parts(output)
            raise _PrefixDone

        if self.layer and len(inputs["input_ids"]):
            hook = self.layers[self.layer - 1].register_forward_hook(stop_behind)
            self._run(inputs, None if cache is None else frozen(cache), [hook])
        below, layer_form = kept[0]
        return Lower(below, inputs, self._above(cache), layer_form)

    def suffix(
        self, split: Split, added: Tensor | None, last_positions: int, vocabulary: Tensor | None = None
    ) -> Tensor:
        """Run the other half with `added` (float32 (rows, positions, d)) added to the output of the FFN.

        Returns the logits of the last `last_positions` positions: (rows, last_positions, vocabulary), in the
        model's dtype; with `vocabulary` (int64 (tokens,)) those of these tokens only. Differentiable with respect
        to `added`.
        """
        output_head = self.model.get_output_embeddings()
        if not len(split.ffn_input):
            tokens = len(output_head.weight if vocabulary is None else vocabulary)
            return split.ffn_input.new_zeros(0, last_positions, tokens)
        head = [] if vocabulary is None else [output_head]
        entry = [] if self.place.entry is self.place.exit else [self.place.entry]

        def ffn(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = split.ffn_output  # (rows, positions, d)
            output = output.clone() if added is None else (output.float() + added).to(output.dtype)
            return split.ffn_form(output.view(hidden_states.shape))  # families may add to it in place

        def some_logits(hidden_states: Tensor) -> Tensor:
            bias = head[0].bias
            return F.linear(hidden_states, head[0].weight[vocabulary], None if bias is None else bias[vocabulary])

        with (
            self._skipped(split),
            _forward_replaced(entry, lambda hidden_states: hidden_states),
            _forward_replaced([self.place.exit], ffn),
            _forward_replaced(head, some_logits),
        ):
            output = self.model(**split.inputs, **self._cached(split.cache), logits_to_keep=last_positions)
        logits: Tensor = output.logits  # (rows, last positions, vocabulary)
        return logits

    def upper(self, lower: Lower, last_positions: int) -> Tensor:
        """Run the model's own layers from the chosen one on; logits of the last positions, as `suffix` returns them."""
        with self._skipped(lower):
            output = self.model(**lower.inputs, **self._cached(lower.cache), logits_to_keep=last_positions)
        logits: Tensor = output.logits  # (rows, last positions, vocabulary)
        return logits

    def _run(self, inputs: dict[str, Tensor], cache: Cache | None, hooks: Sequence[RemovableHandle]) -> None:
        """The model's own forward pass until one of these hooks stops it; the hooks are removed."""
        try:
            self.model(**inputs, **self._cached(cache))
        except _PrefixDone:
            pass
        finally:
            for hook in hooks:
                hook.remove()

    def _above(self, cache: Cache | None) -> Cache | None:
        """The keys and values without those of the layers below the chosen one, which will not run again."""
        return None if cache is None else frozen(cache, drop_below=self.layer)

    def _skipped(self, lower: Lower) -> AbstractContextManager[None]:
        """Within the context, the layers below the chosen one are not run: each gives what the last of them gave."""

        def below(*args: Any, **kwargs: Any) -> Any:
            assert lower.below is not None, "layer 0 has none below it"
            return lower.layer_form(lower.below)

        return _forward_replaced(self.layers[: self.layer], below)

    def _cached(self, cache: Cache | None) -> dict[str, Any]:
        """The arguments of a forward pass with these keys and values, or with none."""
        return {cache_argument(self.model): cache, "use_cache": cache is not None}

    def _no_rows(self, inputs: dict[str, Tensor]) -> Split:
        """A split of no rows, for which a model's own forward pass is not made."""
        empty = torch.zeros(*inputs["input_ids"].shape, self.hidden_size, dtype=self.model.dtype, device=self.device)
        return Split(empty, inputs, None, _plain, empty, empty, _plain)

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within the context, attention is plain matrix products, where the model lets it be chosen.

        The fused kernel's backward pass is several times slower on a CPU for a handful of query positions.
        """
        if not self.model._can_set_attn_implementation():
            yield
            return
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(implementation)


def _plain(hidden: Tensor) -> Tensor:
    return hidden


def _first_of(count: int, hidden: Tensor) -> tuple[Tensor | None, ...]:
    return (hidden, *[None] * (count - 1))


def _parts(output: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The hidden states that a module returned, and what makes the module's kind of output of others."""
    if isinstance(output, tuple):
        return output[0].clone(), partial(_first_of, len(output))
    return output.clone(), _plain


@contextmanager
def _forward_replaced(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
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


def frozen(cache: Cache, rows: Tensor | None = None, drop_below: int = 0) -> Cache:
    """A read-only view of a cache, of some rows only, without the tensors of layers that will not run."""
    length = cache.get_seq_length()

    def layer(index: int) -> _FrozenLayer:
        source = cache.layers[index]
        assert isinstance(source, DynamicLayer), "the caches here are made by `context` or by this function"
        keys, values = source.keys, source.values
        if keys is None or values is None or index < drop_below:
            return _FrozenLayer(None, None, length)
        return _FrozenLayer(keys if rows is None else keys[rows], values if rows is None else values[rows], length)

    return Cache(layers=[layer(index) for index in range(len(cache.layers))])
