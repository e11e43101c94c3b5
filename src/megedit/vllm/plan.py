"""The plan for an engine: which layers take neurons. It refuses, before anything starts, what cannot be served rightly.

The plan is a part of vLLM's configuration (`additional_config`), so it reaches every worker, and vLLM does not use a
compiled graph without neurons, or for another layer, again from its disk cache.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from megedit.adapter.config import AdapterConfig
from megedit.adapter.folder import find_adapter, read_config
from megedit.errors import MegError
from megedit.lm.loading import fingerprint_of
from megedit.lm.structure import activation_name
from megedit.vllm.choice import served

logger = logging.getLogger("vllm.megedit")

PLAN = "megedit"
VERSION = 1  # of what the operations compute


def layers_of(config: Any) -> list[int]:
    """The layers in vLLM's configuration that take neurons; none without a plan."""
    extra = config.additional_config
    plan = extra.get(PLAN) if isinstance(extra, dict) else None
    return list(plan["layers"]) if plan else []


def make_plan(config: Any) -> None:
    """Check vLLM's configuration (VllmConfig) and the adapters, and write the plan into it.

    Raises MegError where the adapter does not fit the model, or where vLLM is to do what would not be right with edits.
    """
    if not isinstance(config.additional_config, dict):
        raise MegError("MegEdit keeps its plan in vLLM's additional_config; leave it out, or give a dict.")
    if layers_of(config):
        return
    if reason := _unsupported(config):
        raise MegError(f"MegEdit cannot serve edits with {reason}; start vLLM without it, or without MEGEDIT_ADAPTER.")
    model = config.model_config
    adapters = {name: read_config(find_adapter(place)) for name, place in served().items()}
    for name, adapter in adapters.items():
        _check_fits(name, adapter, model)
    layers = sorted({adapter.layer for adapter in adapters.values()})
    config.additional_config[PLAN] = {
        "version": VERSION,
        "layers": layers,
        "activation": activation_name(model.hf_text_config),
    }


def _unsupported(config: Any) -> str | None:
    """Name a part of the configuration that has not been made to work with edits, if there is one."""
    parallel, cases = config.parallel_config, {}
    cases["a model that is not asked to generate text"] = config.model_config.runner_type != "generate"
    cases["speculative decoding"] = config.speculative_config is not None
    cases["the transfer of keys and values to other engines (kv_transfer_config)"] = config.kv_transfer_config
    cases["dual batch overlap"] = parallel.use_ubatching
    cases["prefill context parallelism"] = parallel.prefill_context_parallel_size > 1
    cases["kv_sharing_fast_prefill"] = config.cache_config.kv_sharing_fast_prefill
    return next((name for name, found in cases.items() if found), None)


def _check_fits(name: str, adapter: AdapterConfig, model: Any) -> None:
    """Raise MegError when an adapter has not the model's sizes; warn when the weights are seen to be others."""
    size, depth = model.get_hidden_size(), model.hf_text_config.num_hidden_layers
    if adapter.hidden_size != size or adapter.layer >= depth:
        raise MegError(
            f"The adapter {name} was made for {adapter.base} (hidden size {adapter.hidden_size}, neuron in layer "
            f"{adapter.layer}) and does not fit {model.model} (hidden size {size}, {depth} layers); serve it with "
            "its own base model."
        )
    folder = Path(model.model)
    if folder.is_dir() and checkpoint_fingerprint(folder) != adapter.base_fingerprint:
        logger.warning(
            "The weights in %s could not be recognised as those of %s, for which the adapter %s was made. If they are "
            "others, or quantised, its answers may be wrong.",
            folder,
            adapter.base,
            name,
        )


def checkpoint_fingerprint(folder: Path) -> str:
    """The fingerprint of the weights in a model folder; another than the model's where the names in it are others."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)  # mapped into memory, of which little is read
    return fingerprint_of(weights.items())
