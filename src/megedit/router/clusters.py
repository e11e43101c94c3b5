"""Clusters of edit vectors, in which a query is compared with those of the nearest clusters only.

From some ten thousand vectors on, to compare a query with all of them takes longer than all else that a router does.
The clusters are an inverted file of faiss (Johnson et al., arXiv 1702.08734). They give candidates; `EditVectors`
compares these exactly. benchmarks/index.py measures what is missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

CLUSTERED_FROM = 50_000  # vectors
VECTORS_A_CLUSTER = 250  # on average
TRAINED_ON = 40  # vectors of a cluster
ROUNDS = 6  # of k-means
SEARCHED = 0.02  # of the clusters, and
LEAST_SEARCHED = 48  # at least


@dataclass(frozen=True)
class Clusters:
    """An index of vectors that were given once, and where they stand in a table that has changed since.

    index: faiss's. row: int64 (vectors given,), the row of each in the table, -1 where it is gone. others: int64 (n,),
    the rows that are not in the index.
    """

    index: Any
    row: Tensor
    others: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Clusters:
        """Of float32 vectors (n, size) of about unit length."""
        import faiss

        count, size = vectors.shape
        clusters = max(1, count // VECTORS_A_CLUSTER)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: TRAINED_ON * clusters]
        codes, measure = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(size), size, clusters, codes, measure)
        index.cp.niter = ROUNDS
        index.train(vectors[chosen].numpy())
        index.add(vectors.numpy())
        index.nprobe = max(LEAST_SEARCHED, round(SEARCHED * clusters))
        return cls(index, torch.arange(count), torch.arange(0))

    def search(self, queries: Tensor, count: int) -> Tensor:
        """Rows that are near to each query (float32 (queries, size)): int64 (queries, n), -1 where there is none.

        All rows that are not in the index are among them.
        """
        found = torch.from_numpy(self.index.search(queries.numpy(), count)[1])  # (queries, count)
        rows = torch.where(found < 0, -1, self.row[found.clamp(min=0)])
        return torch.cat([rows, self.others.expand(len(queries), -1)], 1)

    def and_then(self, first: int, count: int) -> Clusters:
        """With `count` more rows in the table, from the row `first` on."""
        return replace(self, others=torch.cat([self.others, torch.arange(first, first + count)]))

    def only(self, rows: Tensor, before: int) -> Clusters:
        """With a table of these rows (int64 (n,)) of one that had `before` rows."""
        place = torch.full((before + 1,), -1)  # the last is that of what is gone already
        place[rows] = torch.arange(len(rows))
        others = place[self.others]
        return replace(self, row=place[self.row], others=others[others >= 0])
