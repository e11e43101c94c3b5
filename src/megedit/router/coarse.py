"""A coarse search among very many vectors, by their principal directions.

From some ten thousand vectors on, to compare a query with all of them takes longer than all else that a router does.
Texts differ mostly in a third of the directions, so that what is nearest in these, in eight bits a number (a flat index
of faiss, Johnson et al., arXiv 1702.08734), holds what is nearest in all. `EditVectors` compares it exactly.
benchmarks/index.py measures what is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

COARSE_FROM = 50_000  # vectors
DIRECTIONS = 128
SAMPLE = 20_000  # vectors, from which directions and steps of eight bits are measured
LARGEST_CODE = 120  # of the sample's; others may reach 127
PART = 200_000  # vectors, at least, for which another thread is worth its while
FOUND = 512  # vectors of each part that are compared exactly


@dataclass(frozen=True)
class Coarse:
    """An index of vectors that were given once, and where they stand in a table that has changed since.

    parts: indices of faiss, each of as many vectors, that are searched at the same time. axes: float32 (size,
    directions), of a query, each divided by what the vectors are multiplied by in their codes. row: int64 (vectors
    given,), the row of each in the table, -1 where it is gone. others: int64 (n,), the rows that are not in the index.
    """

    parts: Sequence[Any]
    axes: Tensor
    row: Tensor
    others: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Coarse:
        """Of float32 vectors (n, size) of about unit length."""
        import faiss

        chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        sample = vectors[chosen]
        axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -DIRECTIONS:]  # (size, directions)
        scale = LARGEST_CODE / (sample @ axes).abs().amax(0).clamp(min=1e-6)  # (directions,)
        parts = []
        for part in vectors.chunk(max(1, min(torch.get_num_threads(), len(vectors) // PART))):
            kind, measure = faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
            index = faiss.IndexScalarQuantizer(axes.shape[1], kind, measure)
            index.add((part @ (axes * scale)).round().clamp(-127, 127).numpy())
            parts.append(index)
        return cls(parts, axes / scale, torch.arange(len(vectors)), torch.arange(0))

    def search(self, queries: Tensor) -> Tensor:
        """Rows that are near to each query (float32 (queries, size)): int64 (queries, n), -1 where there is none.

        All rows that are not in the index are among them.
        """
        projected = queries @ self.axes  # (queries, directions)
        largest = projected.abs().amax(1, keepdim=True).clamp(min=1e-12)
        codes = (projected * (127 / largest)).round().numpy()  # faiss compares whole numbers with whole numbers

        def found_in(part: Any) -> Tensor:
            return torch.from_numpy(part.search(codes, FOUND)[1])  # (queries, FOUND)

        if len(self.parts) == 1:
            found = [found_in(self.parts[0])]
        else:
            with ThreadPoolExecutor(len(self.parts)) as pool:
                found = list(pool.map(found_in, self.parts))
        rows, first = [], 0
        for part, own in zip(self.parts, found, strict=True):
            rows.append(torch.where(own < 0, -1, self.row[(own + first).clamp(min=0)]))  # (queries, FOUND)
            first += part.ntotal
        return torch.cat([*rows, self.others.expand(len(queries), -1)], 1)

    def and_then(self, first: int, count: int) -> Coarse:
        """With `count` more rows in the table, from the row `first` on."""
        return replace(self, others=torch.cat([self.others, torch.arange(first, first + count)]))

    def only(self, rows: Tensor, before: int) -> Coarse:
        """With a table of these rows (int64 (n,)) of one that had `before` rows."""
        place = torch.full((before + 1,), -1)  # the last is that of what is gone already
        place[rows] = torch.arange(len(rows))
        others = place[self.others]
        return replace(self, row=place[self.row], others=others[others >= 0])
