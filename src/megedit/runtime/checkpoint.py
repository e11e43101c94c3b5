"""The state of a training run as tensors, so that a run that was killed goes on as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state; by default nowhere. load: None where nothing was saved."""

    load: Callable[[], State | None] = lambda: None
    save: Callable[[State], None] = lambda state: None


NOWHERE = Checkpoint()


class Run:
    """The state of a training run: weights, the optimiser's moments, random numbers of the CPU and of the modules' GPU.

    rng: the generator from which the run draws its batches and noise.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> None:
        self._modules, self._optimizer, self._rng = modules, optimizer, rng
        parameters = (parameter for module in modules.values() for parameter in module.parameters())
        self._device = next(parameters).device  # dropout on a GPU draws its random numbers there

    def state(self, **more: Tensor) -> State:
        """All of it, and what else the caller needs. The tensors are copies."""
        found = {f"{name}/{key}": value for name, module in self._modules.items() for key, value in _of(module)}
        for number, moments in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        found |= {"random/own": self._rng.get_state(), "random/torch": torch.get_rng_state(), **more}
        if self._device.type == "cuda":
            found["random/cuda"] = torch.cuda.get_rng_state(self._device)
        return {name: value.detach().cpu().clone() for name, value in found.items()}

    def restore(self, state: State) -> None:
        """Take up what `state` gave."""
        for name, module in self._modules.items():
            module.load_state_dict({key: state[f"{name}/{key}"] for key, _ in _of(module)})
        whole = self._optimizer.state_dict()
        moments: dict[int, State] = {}
        for key, value in state.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        self._optimizer.load_state_dict({**whole, "state": moments})
        self._rng.set_state(state["random/own"])
        torch.set_rng_state(state["random/torch"])
        if self._device.type == "cuda" and "random/cuda" in state:
            torch.cuda.set_rng_state(state["random/cuda"], self._device)


def _of(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in module.state_dict().items() if isinstance(value, Tensor)]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine(step: int, total: int, floor: float = 0.0) -> float:
    """The share of a learning rate at a step: 1 at the first (0), falling along half a cosine to `floor` at `total`."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / total)) / 2
