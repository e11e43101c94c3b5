"""The processes of one run, as `accelerate launch` or `torchrun` starts them.

Each process draws the same random numbers and takes its own part of the work: some of the collection's batches, some
rows of every training batch. Gradients are averaged, so that all processes hold the same weights; the main one writes.
A process that is alone does all of it, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from megedit.errors import MegError
from megedit.runtime.device import SPREAD, first_device

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=2)  # for the slowest process, where they meet


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. device: where its models go."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """True for the process that writes and reports."""
        return self.rank == 0

    def own(self, items: Any) -> Any:
        """The part of a sequence, or of a tensor's rows, that is this process's."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            with _meeting():
                distributed.barrier()

    def agree(self, value: bool) -> bool:
        """The main process's value, in all processes."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int32, device=self.device)
        with _meeting():
            distributed.broadcast(shared, src=0)
        return bool(shared.item())

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _meeting():
            distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.count)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one process after the other; gradients go back to where the rows are from."""
        if self.count == 1:
            return rows
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(rows))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.count > 1:
            values = values.to(self.device)
            with _meeting():
                distributed.all_reduce(values)
        return values


ALONE = Processes()


@contextmanager
def _meeting() -> Iterator[None]:
    """Within the context, say clearly when another process does not come."""
    try:
        yield
    except RuntimeError as error:
        hours = PATIENCE.total_seconds() / 3600
        raise MegError(
            f"A process of this run has ended, or was not heard of for {hours:g} hours "
            f"({str(error).splitlines()[0]}); start the same command again to go on."
        ) from error


def launched(device: str | torch.device) -> Processes:
    """The processes of this run, joined if a launcher has started several.

    device: `cuda` becomes this process's own GPU. Raises MegError when each would spread its model over all GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=first_device(device))
    if str(device) == SPREAD:
        raise MegError("Several processes cannot each spread the base model over all devices; start one, or give cuda.")
    device = torch.device(device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device)
