"""The edits in a worker: both of vLLM's runners, played by objects that are asked and answer as they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from megedit.vllm.adapters import neuron_of
from megedit.vllm.plan import PLAN
from megedit.vllm.worker import attach_to_runner

LAYER, D = 1, 8


class PPMissingLayer(nn.Identity):
    """A layer that another rank of the pipeline has."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(D, D))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.mlp(hidden)
        return output


class Runner:
    """The common part of both runners: a step runs the layer on one token of zeros after another."""

    device = torch.device("cpu")

    def __init__(self, layer: nn.Module) -> None:
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Layer(), layer, Layer()])
        self.computed: dict[str, int] = {}
        self.vllm_config = SimpleNamespace(
            additional_config={PLAN: {"layers": [LAYER], "activation": "silu"}},
            model_config=SimpleNamespace(
                hf_text_config=SimpleNamespace(num_hidden_layers=3), get_hidden_size=lambda: D, dtype=torch.float32
            ),
            scheduler_config=SimpleNamespace(max_num_seqs=2, max_num_batched_tokens=16),
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
            compilation_config=SimpleNamespace(cudagraph_capture_sizes=None),
        )

    def get_model(self) -> nn.Module:
        return self.model

    @property
    def slots(self) -> list[int]:
        tables: Any = self.model.layers[LAYER].mlp.megedit  # type: ignore[index, union-attr]
        return list(tables.slots.tolist())


class Older(Runner):
    def execute_model(self, output: Any) -> None:
        names = [*output.counts]
        starts = np.array([self.computed.get(name, 0) for name in names])
        self.input_batch = SimpleNamespace(req_ids=names, num_computed_tokens_cpu=starts)
        self._prepare_inputs(output, np.array([*output.counts.values()]))

    def _prepare_inputs(self, output: Any, counts: Any) -> None:
        for name, count in output.counts.items():
            self.computed[name] = self.computed.get(name, 0) + count


class Newer(Runner):
    def execute_model(self, output: Any) -> None:
        self.prepare_inputs(output)

    def prepare_inputs(self, output: Any) -> Any:
        starts = np.array([self.computed.get(name, 0) for name in output.counts])
        for name, count in output.counts.items():
            self.computed[name] = self.computed.get(name, 0) + count
        counts = np.array([*output.counts.values()])
        return SimpleNamespace(req_ids=[*output.counts], num_scheduled_tokens=counts, num_computed_tokens_np=starts)


def step(counts: dict[str, int], new: dict[str, int | None] | None = None, finished: set[str] | None = None) -> Any:
    """A step; new: by request, the first token of its neuron."""
    found = []
    for name, first in (new or {}).items():
        weights = np.ones(2 * D, dtype=np.float32)
        found.append(SimpleNamespace(req_id=name, megedit=None if first is None else neuron_of(LAYER, first, weights)))
    return SimpleNamespace(counts=counts, scheduled_new_reqs=found, finished_req_ids=finished or set())


@pytest.mark.parametrize("kind", [Older, Newer])
def test_the_steps_of_a_runner(kind: type[Older] | type[Newer]) -> None:
    runner = kind(Layer())
    attach_to_runner(runner)
    runner.execute_model(step({"a": 3, "b": 2}, {"a": None, "b": 3}))  # b's prompt has four tokens
    assert not any(runner.slots)
    runner.execute_model(step({"a": 1, "b": 2}))
    slot = runner.slots[2]
    assert slot and runner.slots[:2] == [0, 0] and not any(runner.slots[3:])
    runner.execute_model(step({"b": 1, "a": 1}))
    assert runner.slots[:2] == [slot, 0]
    runner.execute_model(step({"a": 1}))  # b is preempted
    assert not any(runner.slots)
    runner.computed["b"] = 0
    runner.execute_model(step({"b": 5}, {"b": 3} if kind is Newer else None))  # and comes back
    assert [bool(slot) for slot in runner.slots[:6]] == [False] * 3 + [True] * 2 + [False]
    runner.computed["b"] = 0
    runner.execute_model(step({"b": 1}, {"b": None}, {"b"}))  # ended, and another of this name begins
    assert not any(runner.slots)


def test_a_rank_without_the_layer_is_left_alone() -> None:
    runner = Older(PPMissingLayer())
    attach_to_runner(runner)
    assert "execute_model" not in vars(runner)


def test_without_a_plan_nothing_is_attached() -> None:
    runner = Newer(Layer())
    runner.vllm_config.additional_config.clear()
    attach_to_runner(runner)
    assert "execute_model" not in vars(runner) and not hasattr(runner.model.layers[LAYER].mlp, "megedit")  # type: ignore[index, union-attr]
