"""The edits in a worker: the tables of its layers, and what they hold in each step of vLLM's model runner.

vLLM has two runners (GPUModelRunner of v1/worker/gpu_model_runner.py, and the newer one of v1/worker/gpu). Both are
told of new and finished requests by `execute_model` and lay the tokens of a step out in a method of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from megedit.vllm.batch import Neuron, Span, Tables, spans
from megedit.vllm.place import attach, find_layers, find_place
from megedit.vllm.plan import PLAN, layers_of

logger = logging.getLogger("vllm.megedit")

NEURON = "megedit"  # the attribute of vLLM's requests that holds the neuron


class WorkerEdits:
    """The neurons of the requests that a worker knows, by layer, and the tables that its layers read."""

    def __init__(self, tables: dict[int, Tables]) -> None:
        self._tables = tables
        self._neurons: dict[int, dict[str, Neuron]] = {layer: {} for layer in tables}

    def update(self, output: Any) -> None:
        """Take over the requests that a step (SchedulerOutput) ends and begins.

        A preempted request keeps its neuron; where it comes back as a new one, it brings it again.
        """
        for request in output.finished_req_ids:
            self._drop(request)
        for new in output.scheduled_new_reqs:
            self._drop(new.req_id)
            neuron: Neuron | None = getattr(new, NEURON, None)
            if neuron is not None and neuron.layer in self._neurons:
                self._neurons[neuron.layer][new.req_id] = neuron

    def _drop(self, request: str) -> None:
        for layer, tables in self._tables.items():
            if self._neurons[layer].pop(request, None) is not None:
                tables.drop(request)

    def lay_out(self, step: list[Span]) -> None:
        """Fill the tables for a step."""
        for layer, tables in self._tables.items():
            tables.fill(step, self._neurons[layer])


def attach_to_runner(runner: Any) -> None:
    """Add the edits to a runner whose model is loaded: to the layers of the plan that this rank has."""
    config = runner.vllm_config
    planned = layers_of(config)
    if not planned:
        return
    layers = find_layers(runner.get_model(), config.model_config.hf_text_config.num_hidden_layers)
    tables = {}
    for layer in planned:
        if type(layers[layer]).__name__ == "PPMissingLayer":  # another rank of the pipeline has it
            continue
        tables[layer] = _tables(runner)
        attach(find_place(layers[layer]), tables[layer])
        logger.info("MegEdit: neurons enter layer %d of %s", layer, type(layers[layer]).__name__)
    if tables:
        _follow(runner, WorkerEdits(tables))


def _tables(runner: Any) -> Tables:
    config = runner.vllm_config
    model, scheduler = config.model_config, config.scheduler_config
    largest_graph = max(config.compilation_config.cudagraph_capture_sizes or [0])
    return Tables(
        requests=scheduler.max_num_seqs * config.parallel_config.pipeline_parallel_size,  # steps under way at a time
        tokens=max(scheduler.max_num_batched_tokens, largest_graph),
        hidden_size=model.get_hidden_size(),
        activation=config.additional_config[PLAN]["activation"],
        device=runner.device,
        dtype=model.dtype,
    )


def _follow(runner: Any, edits: WorkerEdits) -> None:
    """Let a runner tell of its steps."""
    execute: Callable[..., Any] = runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        edits.update(scheduler_output)
        return execute(scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model
    if _is_newer(runner):
        prepare: Callable[..., Any] = runner.prepare_inputs

        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batch = prepare(*args, **kwargs)
            edits.lay_out(spans(batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np))
            return batch

        runner.prepare_inputs = prepare_inputs
    else:
        prepare_old: Callable[..., Any] = runner._prepare_inputs

        def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
            result = prepare_old(scheduler_output, num_scheduled_tokens, *args, **kwargs)
            batch = runner.input_batch
            edits.lay_out(spans(batch.req_ids, num_scheduled_tokens, batch.num_computed_tokens_cpu))
            return result

        runner._prepare_inputs = _prepare_inputs


def _is_newer(runner: Any) -> bool:
    """True for the newer of the two runners."""
    return hasattr(runner, "prepare_inputs")
