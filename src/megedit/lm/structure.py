"""The parts of a causal language model that an edit needs: decoder layers, FFN, activation, kind of attention.

They are found from the model's modules and configuration, so that a new family mostly needs nothing here; see 'Add a
model family' in docs/development.md.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from megedit.errors import MegError

Activation = Callable[[Tensor], Tensor]

_FFN = re.compile(r"mlp|ffn|feed_?forward|moe", re.IGNORECASE)
_NORM_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm")
_ACTIVATION = ("hidden_activation", "hidden_act", "activation_function", "activation")  # names in configurations
_NEW_FAMILY = "see 'Add a model family' in docs/development.md"


@dataclass(frozen=True)
class FeedForward:
    """The FFN of one decoder layer: the module that its input h enters, and the one that its output leaves.

    The two are one module in most families. Within the FFN the rows of a batch may stand one after the other, as
    (rows * positions, d); the input of the layer tells how many there are.
    """

    layer: nn.Module
    entry: nn.Module
    exit: nn.Module


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states with which a module is called."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def cache_argument(model: nn.Module) -> str:
    """The argument of a model's forward pass for the keys and values of earlier columns.

    `cache` from transformers 5.24 on, where `past_key_values` is deprecated; before, `past_key_values`.
    """
    return _cache_argument(type(model).forward)


@cache  # asked before every forward pass, and slow to find out
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the module list in the decoder that is as long as the configuration says."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [] if model.config.is_encoder_decoder else module_lists(model.get_decoder(), depth)
    if len(found) != 1:
        raise MegError(
            f"{type(model).__name__} is not a model family MegEdit knows: expected one list of {depth} decoder "
            f"layers, found {len(found)}; {_NEW_FAMILY}."
        )
    return found[0]


def module_lists(model: nn.Module, length: int) -> list[nn.ModuleList]:
    """The module lists of a length in a model, without those inside of one another."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # outer ones first
        if isinstance(module, nn.ModuleList) and len(module) == length and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def find_feed_forward(
    layer: nn.Module,
    has_matrices: Callable[[nn.Module], bool] = _has_matrices,
    is_linear: Callable[[nn.Module], bool] = _is_linear,
) -> FeedForward:
    """The FFN of a decoder layer: the one child with matrices that is called like one, a mixture of experts as a whole;
    or, in layers without such a child, the two linear modules that stand beside the attention.

    A norm between the FFN and the residual stream counts as its end: behind it, the neuron can write a vector of any
    length. has_matrices, is_linear: how modules that are not transformers' are told.
    """
    children = dict(layer.named_children())
    found = [module for name, module in children.items() if _FFN.search(name) and has_matrices(module)]
    linears = [module for module in children.values() if is_linear(module)]
    if len(found) == 1:
        norm = next((children[name] for name in _NORM_AFTER if name in children), found[0])
        return FeedForward(layer, found[0], norm)
    if not found and len(linears) == 2:
        return FeedForward(layer, *linears)
    raise MegError(
        f"{type(layer).__name__} is not a decoder layer MegEdit knows: expected one FFN, found {len(found)}; "
        f"{_NEW_FAMILY}."
    )


def has_local_attention(model: PreTrainedModel) -> bool:
    """True if some layers see a window of the last columns only; padding must then not stand among the columns."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds:
        return any(kind not in ("full_attention", "global") for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def find_activation(model: PreTrainedModel) -> Activation:
    """The activation function of the model's FFNs, which the neuron shares."""
    activation: Activation = ACT2FN[activation_name(model.config.get_text_config())]
    return activation


def activation_name(config: PretrainedConfig) -> str:
    """The name of that function in transformers, from the configuration of a model or of its text model."""
    name = next((value for key in _ACTIVATION if (value := getattr(config, key, None))), None)
    if name not in ACT2FN:
        raise MegError(f"The activation function of a {config.model_type} model is not known; {_NEW_FAMILY}.")
    return str(name)
