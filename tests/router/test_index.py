"""The vectors of edits."""

from __future__ import annotations

import pytest
import torch

from megedit.router import coarse, index
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


@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0])
@pytest.mark.parametrize("count", [1, 4, 500])
def test_few_queries_find_what_many_find(spread: float, count: int) -> None:
    """Exactly the nearest, also among vectors that are nearly, or quite, the same."""
    generator = torch.Generator().manual_seed(0)
    centre, noise = torch.randn(384, generator=generator), torch.randn(300, 384, generator=generator)
    table = EditVectors.pack(torch.nn.functional.normalize(centre + spread * noise, dim=1))
    queries = torch.nn.functional.normalize(centre + spread * torch.randn(20, 384, generator=generator), dim=1)
    similarity, _ = table.nearest(queries, count)
    for first in range(0, 20, 5):
        few, rows = table.nearest(queries[first : first + 5], count)
        torch.testing.assert_close(few, similarity[first : first + 5], rtol=0, atol=1e-5)
        torch.testing.assert_close(few[0], table[rows[0]] @ queries[first], rtol=0, atol=1e-5)
        assert all(len(set(own)) == min(count, 300) for own in rows.tolist())


def test_many_vectors_are_searched_coarsely_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added is found at once, what is gone is found no more, and after many changes the index is made anew."""
    monkeypatch.setattr(index, "COARSE_FROM", 500)
    monkeypatch.setattr(coarse, "PART", 250)
    generator = torch.Generator().manual_seed(0)
    table = EditVectors.pack(torch.nn.functional.normalize(torch.randn(600, 64, generator=generator), dim=1))
    assert table.coarse is None and vectors(3).indexed().coarse is None
    indexed = table.indexed()
    queries = torch.nn.functional.normalize(
        table.unpack()[::50] + 0.05 * torch.randn(12, 64, generator=generator), dim=1
    )

    def same(changed: EditVectors, count: int = 4) -> None:
        plain = EditVectors(changed.codes, changed.scales)
        (similarity, rows), (expected, nearest) = changed.nearest(queries, count), plain.nearest(queries, count)
        torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-5)
        assert torch.equal(rows[:, 0], nearest[:, 0])

    assert indexed.coarse is not None and indexed.indexed() is indexed
    same(indexed)
    more = indexed.and_then(EditVectors.pack(queries))
    assert more.nearest(queries)[1][:, 0].tolist() == list(range(600, 612))
    same(more)
    kept = torch.cat([torch.arange(611, 300, -1), torch.arange(0, 300, 3)])
    fewer, _ = more.of_edits(torch.arange(612), kept)
    assert fewer.coarse is not None and fewer.coarse.parts is more.coarse.parts  # type: ignore[union-attr]
    same(fewer)
    again, _ = fewer.and_then(vectors_of(200)).of_edits(torch.arange(611), torch.arange(611).flip(0))
    same(again)
    anew = again.indexed()
    assert anew.coarse is not None and len(anew.coarse.others) == 0
    same(anew)
    assert indexed.of_edits(torch.arange(600), torch.arange(0))[0].indexed().coarse is None


def vectors_of(count: int) -> EditVectors:
    return EditVectors.pack(torch.nn.functional.normalize(torch.randn(count, 64), dim=1))


def test_vectors_that_are_all_the_same_are_searched_coarsely_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "COARSE_FROM", 10)
    table = EditVectors.pack(torch.nn.functional.normalize(torch.ones(20, 64), dim=1)).indexed()
    similarity, rows = table.nearest(table.unpack()[:2], 3)
    assert (similarity > 0.99).all() and all(len(set(own)) == 3 for own in rows.tolist())


def test_where_all_that_is_near_is_gone_everything_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "COARSE_FROM", 10)
    monkeypatch.setattr(coarse, "FOUND", 5)
    table = vectors(40).indexed()
    query = table.unpack()[:1]
    nearest = table.nearest(query, 8)[1][0]  # more than are looked for in the index
    left = torch.tensor([row for row in range(40) if row not in nearest.tolist()])
    fewer, _ = table.of_edits(torch.arange(40), left)
    assert fewer.coarse is not None and (fewer.coarse.search(query) < 0).all()
    found = fewer.nearest(query, 2)
    torch.testing.assert_close(found[0], EditVectors(fewer.codes, fewer.scales).nearest(query, 2)[0])
