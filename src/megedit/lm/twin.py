"""A model's modules once more, around the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain

from transformers import PreTrainedModel


def twin(model: PreTrainedModel, shared: Iterable[object] = ()) -> PreTrainedModel:
    """The model once more, with modules, hooks and configuration of its own and the same parameters and buffers.

    What is hooked, replaced or set in one does not touch the other, so that a thread can answer with the one while
    another collects neurons with the other. It takes no memory to speak of. shared: what hooks hold on to and is not
    copied.
    """
    kept = chain(model.parameters(), model.buffers(), shared)
    return copy.deepcopy(model, {id(held): held for held in kept})
