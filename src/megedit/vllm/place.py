"""The FFN of a layer in vLLM's model, found by structure, and made to add the neurons of the step to its output.

The FFN's modules get a class of their own with another `forward`: names, parameters and loading of weights stay as they
are, and the compiler sees ordinary modules. Within tensor parallelism each rank has the whole input and, behind the sum
over all ranks inside the FFN, the whole output, so each adds the same neurons once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megedit.errors import MegError
from megedit.lm.structure import FeedForward, find_feed_forward, first_input, module_lists
from megedit.vllm import op  # registers the operations
from megedit.vllm.batch import Tables

__all__ = ["attach", "find_layers", "find_place", "op"]


def find_layers(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of `depth` decoder layers in vLLM's model; of those with images, in its language model.

    Raises MegError where there is not exactly one.
    """
    inner = getattr(model, "get_language_model", None)
    model = inner() if inner is not None else model
    found = module_lists(model, depth)
    if len(found) != 1:
        raise MegError(
            f"MegEdit cannot serve {type(model).__name__} in vLLM: expected one list of {depth} decoder layers, found "
            f"{len(found)}; serve this model without MEGEDIT_ADAPTER."
        )
    return found[0]


def find_place(layer: nn.Module) -> FeedForward:
    """The FFN of one of vLLM's decoder layers; raises MegError where it is not clear.

    After loading, vLLM may keep matrices elsewhere than in parameters; what has modules of its own is no norm.
    """
    return find_feed_forward(layer, lambda module: next(module.children(), None) is not None, _is_linear)


def attach(place: FeedForward, tables: Tables) -> None:
    """Let an FFN add the neurons of the tables to its output; for good."""
    if place.entry is place.exit:
        _replace_forward(place.exit, tables, _whole)
        return
    tables.keep_hidden()
    _replace_forward(place.entry, tables, _entry)
    _replace_forward(place.exit, tables, _exit)


Forward = Callable[..., Any]


def _whole(own: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _added(own(self, *args, **kwargs), first_input(args, kwargs), self.megedit)

    return forward


def _entry(own: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        tables: Tables = self.megedit
        hidden = first_input(args, kwargs).reshape(-1, tables.hidden_size)  # (T, d)
        torch.ops.megedit.keep_hidden(hidden, tables.hidden)
        return own(self, *args, **kwargs)

    return forward


def _exit(own: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _added(own(self, *args, **kwargs), None, self.megedit)

    return forward


def _added(result: Any, hidden: Tensor | None, tables: Tables) -> Any:
    """The result of a module with the neurons added: to the first of several things that it returns.

    hidden: the FFN's input; where it is None, the tables have kept it.
    """
    output: Tensor = result[0] if isinstance(result, tuple) else result
    flat = output.reshape(-1, tables.hidden_size)  # (T, d)
    kept = tables.hidden[: len(flat)] if hidden is None else hidden.reshape(-1, tables.hidden_size)  # (T, d)
    edited: Tensor = torch.ops.megedit.add_neurons(
        flat, kept, tables.slots, tables.keys, tables.biases, tables.values, tables.activation
    )
    edited = edited.view(output.shape)
    return (edited, *result[1:]) if isinstance(result, tuple) else edited


def _replace_forward(module: nn.Module, tables: Tables, around: Callable[[Forward], Forward]) -> None:
    """Give a module a class with another `forward`, and the tables as a part of it, where the compiler finds them."""
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"forward": around(own.forward), "__module__": own.__module__})
    module.megedit = tables


def _is_linear(module: nn.Module) -> bool:
    return any(kind.__name__ == "LinearBase" for kind in type(module).__mro__)
