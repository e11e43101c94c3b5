"""Where vLLM calls the plugin: a few of its methods, each wrapped once in each process.

vLLM offers plugins no other way to these places. Each is looked up by name: a version of vLLM in which one is missing
is refused before it starts.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from megedit.errors import MegError, needs
from megedit.vllm.cache import with_block_key
from megedit.vllm.choice import chosen, served
from megedit.vllm.worker import NEURON, attach_to_runner

ADAPTERS, ROUTER = "megedit_adapters", "megedit_router"  # attributes of vLLM's engine core
PENDING = "megedit_pending"  # the attribute of a request whose neuron is being found
TRIED = "0.32"  # the version that the tests run with

Original = Callable[..., Any]


def install() -> None:
    """Wrap vLLM's methods; a second call changes nothing. Raises MegError where one is not there."""
    needs("vllm", "vllm", "serving with vLLM")
    for place, name, around in (
        ("vllm.engine.arg_utils:EngineArgs", "create_engine_config", _plan_with_config),
        ("vllm.sampling_params:SamplingParams", "verify", _verify_choice),
        ("vllm.v1.engine.input_processor:InputProcessor", "resolve_watermarking", _refuse_beams),
        ("vllm.v1.engine.core:EngineCore", "_initialize_kv_caches", _load_adapters),
        ("vllm.v1.engine.core:EngineCore", "preprocess_add_request", _find_neuron),
        ("vllm.v1.core.sched.scheduler:Scheduler", "_handle_blocked_waiting_request", _wait_for_neuron),
        ("vllm.v1.core.sched.output:NewRequestData", "from_request", _send_neuron),
        ("vllm.v1.core.kv_cache_utils", "generate_block_hash_extra_keys", _add_block_key),
        ("vllm.v1.worker.gpu_worker:Worker", "load_model", _attach_after_load),
    ):
        _wrap(place, name, around)


def _wrap(place: str, name: str, around: Callable[[Original], Original]) -> None:
    module_name, _, owner_name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
        owner = getattr(module, owner_name) if owner_name else module
        original = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        from vllm import __version__

        raise MegError(
            f"MegEdit does not fit vLLM {__version__}, which has no {name} in {place}; install vLLM {TRIED}."
        ) from error
    if getattr(original, NEURON, False):
        return
    bound_to_class = isinstance(vars(owner).get(name), classmethod)
    wrapped = wraps(original)(around(original))
    setattr(wrapped, NEURON, True)
    if owner is module:
        _replace_everywhere(name, original, wrapped)
    else:
        setattr(owner, name, staticmethod(wrapped) if bound_to_class else wrapped)


def _replace_everywhere(name: str, original: Original, wrapped: Original) -> None:
    """Replace a function in all modules of vLLM that have imported it."""
    for module in [module for key, module in sys.modules.items() if key.startswith("vllm.")]:
        if vars(module).get(name) is original:
            setattr(module, name, wrapped)


# ---------------------------------------------------------------------------------------------------
# In the front end


def _plan_with_config(original: Original) -> Original:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from megedit.vllm.plan import make_plan

        config = original(self, *args, **kwargs)
        make_plan(config)
        return config

    return create_engine_config


def _verify_choice(original: Original) -> Original:
    names = list(served())

    def verify(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            chosen(self.extra_args, names)
        except MegError as error:
            raise _bad_request(str(error)) from error
        return original(self, *args, **kwargs)

    return verify


def _refuse_beams(original: Original) -> Original:
    def resolve_watermarking(self: Any, params: Any) -> Any:
        """Every beam search begins with this; each of its steps is a new prompt, which a neuron does not fit."""
        if hasattr(params, "beam_width"):
            raise _bad_request("Beam search does not work with MegEdit's edits; ask for n answers instead.")
        return original(self, params)

    return resolve_watermarking


def _bad_request(message: str) -> Exception:
    """vLLM's own error for what a client did wrong, which its server answers with status 400."""
    from vllm.exceptions import VLLMValidationError

    error: Exception = VLLMValidationError(message, parameter="megedit")
    return error


# ---------------------------------------------------------------------------------------------------
# In the engine core


def _load_adapters(original: Original) -> Original:
    def _initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        from transformers import AutoTokenizer

        from megedit.vllm.adapters import RouterThread, ServedAdapters

        model = vllm_config.model_config
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, revision=model.tokenizer_revision)
        adapters = ServedAdapters(served(), tokenizer)
        setattr(self, ADAPTERS, adapters)
        setattr(self, ROUTER, RouterThread(adapters))
        return original(self, vllm_config, *args, **kwargs)

    return _initialize_kv_caches  # which the engine core calls when it starts


def _find_neuron(original: Original) -> Original:
    def preprocess_add_request(self: Any, request: Any) -> Any:
        from vllm.v1.request import RequestStatus

        from megedit.vllm.adapters import Asked

        made, wave = original(self, request)
        params = made.sampling_params
        if params is None or made.prompt_token_ids is None or made.prompt_embeds is not None or made.resumable:
            return made, wave  # nothing to generate, a prompt that is no text, or one that is still being written
        name = getattr(self, ADAPTERS).choice(params.extra_args)
        if name is not None:
            found = getattr(self, ROUTER).submit(Asked(name, tuple(made.prompt_token_ids)))
            setattr(made, PENDING, (found, made.status))
            made.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR  # the scheduler passes it over
        return made, wave

    return preprocess_add_request


def _wait_for_neuron(original: Original) -> Original:
    def _handle_blocked_waiting_request(self: Any, request: Any) -> Any:
        pending = getattr(request, PENDING, None)
        if pending is None:
            return original(self, request)
        found, status = pending
        if not found.done():
            return False
        neuron = found.result()
        setattr(request, NEURON, neuron)
        setattr(request, PENDING, None)
        if neuron is not None and request.block_hashes:
            request.block_hashes.clear()
            request.update_block_hashes()
        waits_for_grammar = request.status == status
        request.status = status
        return original(self, request) if waits_for_grammar else True

    return _handle_blocked_waiting_request


def _send_neuron(original: Original) -> Original:
    def from_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        data = original(request, *args, **kwargs)
        setattr(data, NEURON, getattr(request, NEURON, None))
        return data

    return from_request


def _add_block_key(original: Original) -> Original:
    def generate_block_hash_extra_keys(request: Any, start: int, end: int, *args: Any, **kwargs: Any) -> Any:
        keys, next_index = original(request, start, end, *args, **kwargs)
        return with_block_key(keys, getattr(request, NEURON, None), end), next_index

    return generate_block_hash_extra_keys


# ---------------------------------------------------------------------------------------------------
# In the workers


def _attach_after_load(original: Original) -> Original:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        attach_to_runner(self.model_runner)
        return result

    return load_model
