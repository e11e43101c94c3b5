"""The vectors of edits."""

from __future__ import annotations

import pytest
import torch

from megedit.router.index import EditVectors, owners_of


def vectors(count: int) -> EditVectors:
    generator = torch.Generator().manual_seed(count)
    return EditVectors.pack(torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1))


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [0, 2], []])
def test_vectors_of_some_edits(order: list[int]) -> None:
    """Each edit's vectors stay together, in their order."""
    table, owners = vectors(6), owners_of([2, 1, 3])
    rows = [row for edit in order for row in ([0, 1], [2], [3, 4, 5])[edit]]
    found, own = table.of_edits(owners, torch.tensor(order, dtype=torch.long))
    assert torch.equal(found.unpack(), table.unpack()[torch.tensor(rows, dtype=torch.long)])
    assert own.tolist() == owners_of([(2, 1, 3)[edit] for edit in order]).tolist()


def test_vectors_behind_others() -> None:
    both = vectors(2).and_then(vectors(3))
    assert torch.equal(both.unpack(), torch.cat([vectors(2).unpack(), vectors(3).unpack()]))
    empty = EditVectors(torch.zeros(0, 8, dtype=torch.int8), torch.zeros(0, 1))
    assert torch.equal(empty.and_then(vectors(3)).codes, vectors(3).codes)
    found, own = empty.of_edits(owners_of([]), owners_of([]))
    assert len(found) == len(own) == 0
