"""The plugin for vLLM: the engine answers edited queries with their edits and all others as without the plugin.

vLLM calls `register` in each of its processes. Which adapter is served says the environment variable MEGEDIT_ADAPTER;
without it nothing happens. What is done where:

    front end      plan.py refuses what cannot be served, choice.py reads what a request asks for
    engine core    adapters.py routes each new request and finds its neuron, cache.py keeps the prefix cache exact
    worker         place.py finds the FFN in vLLM's model, batch.py says which token has which neuron,
                   op.py adds the neurons to the FFN's output
    hooks.py       the places in vLLM at which all this is called

start.py starts vLLM's server with it.
"""

from __future__ import annotations

import os

VARIABLE = "MEGEDIT_ADAPTER"


def register() -> None:
    """Add the edits to vLLM's engine in this process, if the environment variable names an adapter."""
    if os.environ.get(VARIABLE, "").strip():
        from megedit.vllm.hooks import install

        install()
