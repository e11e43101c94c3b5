"""vLLM's prefix cache beside edits: a block is used again only by a request in which it would be the same.

The cache knows blocks of keys and values by a hash of their tokens and of all tokens before. From the first token on
which a neuron acts, they also depend on the neuron; so from there on its digest goes into the hash. Everything before
is shared with all requests. In the next turn of a conversation the earlier answer is part of the prompt, which the base
model reads: that request's blocks carry no digest there, and those written while the answer was made do not fit it.
"""

from __future__ import annotations

from typing import Any

from megedit.vllm.batch import Neuron

TAG = "megedit"


def block_key(neuron: Neuron | None, end: int) -> tuple[tuple[str, str], ...]:
    """The part of a block's hash beside its tokens that tells of the neuron; its last token is `end - 1`."""
    return ((TAG, neuron.digest),) if neuron is not None and end > neuron.first else ()


def with_block_key(keys: tuple[Any, ...] | None, neuron: Neuron | None, end: int) -> tuple[Any, ...] | None:
    """vLLM's own keys of a block, None where there are none, and that of the neuron."""
    own = block_key(neuron, end)
    return (*(keys or ()), *own) if own else keys
