"""Callbacks by which long work reports how far it is and keeps what is done: their types, and those that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Advance = Callable[[int], None]  # given the number of steps, or edits, just done
Compute = Callable[[], "dict[str, Tensor]"]  # the tensors of a part of the work
Keep = Callable[[str, Compute], "dict[str, Tensor]"]  # the named part's tensors, computed unless they were kept


def no_progress(done: int) -> None:
    """Report nothing."""


def keep_nothing(name: str, compute: Compute) -> dict[str, Tensor]:
    """Compute, and keep nothing."""
    return compute()
