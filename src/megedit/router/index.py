"""The vectors of edits, eight bits a number: a hundred thousand of them in 40 MB, searched in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from megedit.router.coarse import COARSE_FROM, FOUND, Coarse
from megedit.runtime.tensors import SCALE, pack

COMPARED_AT_ONCE = 8192  # edits; bounds the memory of a search
FEW = 16  # queries, for which turning all codes into float32 would take longer than all else
BESIDE = 0.1  # share of the vectors that may stand beside the coarse index, before it is made anew


@dataclass(frozen=True)
class EditVectors:
    """Unit vectors as codes int8 (edits, C) and scales float32 (edits, 1); a vector is its codes times its scale.

    coarse: of many vectors, on a processor, the index in which few queries are searched first.
    """

    codes: Tensor
    scales: Tensor
    coarse: Coarse | None = field(default=None, compare=False)

    @classmethod
    def pack(cls, vectors: Tensor) -> EditVectors:
        """Of float32 vectors (edits, C). Packing what was packed before changes nothing."""
        packed = pack({"v": vectors})
        return cls(packed["v"].to(vectors.device), packed["v" + SCALE].float().to(vectors.device))

    @classmethod
    def from_bytes(cls, of_edits: Sequence[bytes], size: int) -> tuple[EditVectors, Tensor]:
        """The vectors that `to_bytes` wrote, and the edit that each belongs to, int64 (vectors,).

        Raises ValueError when they are not vectors of this size.
        """
        if any(len(data) % (size + 2) or not data for data in of_edits):
            raise ValueError(f"the vectors of the edits are not of length {size}")
        table = np.frombuffer(b"".join(of_edits), dtype=np.uint8).reshape(-1, size + 2)
        codes = torch.from_numpy(table[:, :-2].view(np.int8).copy())
        scales = torch.from_numpy(table[:, -2:].copy().view(np.float16).astype(np.float32))
        return cls(codes, scales), owners_of([len(data) // (size + 2) for data in of_edits])

    def to_bytes(self, owners: Tensor) -> list[bytes]:
        """The vectors of each edit, each as C bytes of int8 and two of its scale. owners: int64 (vectors,), rising."""
        codes, scales = self.codes.cpu().numpy(), self.scales.half().cpu().numpy()
        found = [b""] * (int(owners[-1]) + 1 if len(owners) else 0)
        for owner, row, scale in zip(owners.tolist(), codes, scales, strict=True):
            found[owner] += row.tobytes() + scale.tobytes()
        return found

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of these rows (int64 (n,)): float32 (n, C)."""
        return self.codes[rows].float() * self.scales[rows]

    def unpack(self) -> Tensor:
        """All vectors: float32 (edits, C)."""
        return self.codes.float() * self.scales

    def of_edits(self, owners: Tensor, edits: Tensor) -> tuple[EditVectors, Tensor]:
        """The vectors of some edits in a given order, and the edit that each belongs to, int64 (vectors,).

        owners: int64 (all vectors,), rising. edits: int64 (edits,), which of these.
        """
        counts = owners.bincount()  # (all edits,)
        first = counts.cumsum(0) - counts  # row of each edit's first vector
        counts = counts[edits]
        own = torch.arange(len(edits), device=owners.device).repeat_interleave(counts)  # (vectors,)
        place = torch.arange(len(own), device=own.device) - (counts.cumsum(0) - counts)[own]  # among those of its edit
        rows = first[edits][own] + place
        coarse = self.coarse and self.coarse.only(rows, len(self))
        return EditVectors(self.codes[rows], self.scales[rows], coarse), own

    def and_then(self, others: EditVectors) -> EditVectors:
        """These vectors, and others behind them."""
        codes, scales = torch.cat([self.codes, others.codes]), torch.cat([self.scales, others.scales])
        return EditVectors(codes, scales, self.coarse and self.coarse.and_then(len(self), len(others)))

    def indexed(self) -> EditVectors:
        """With a coarse index where there are many vectors: the one that there is, if it holds most of them."""
        if len(self) < COARSE_FROM or self.codes.device.type != "cpu":
            return EditVectors(self.codes, self.scales)
        if self.coarse is not None and len(self.coarse.others) <= BESIDE * len(self):
            return self
        return replace(self, coarse=Coarse.of(self.unpack()))

    def to(self, device: str | torch.device) -> EditVectors:
        return EditVectors(self.codes.to(device), self.scales.to(device))

    def nearest(self, queries: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The most similar edits of unit vectors (float32 (queries, C)), best first.

        Returns their similarities, cosines float32 (queries, count), and their rows, int64 (queries, count); fewer
        columns where there are fewer edits. With a coarse index, few queries may miss one of them.
        """
        if self.coarse is not None and 0 < len(queries) <= FEW and count <= FOUND:
            rows = self.coarse.search(queries)  # (queries, n)
            if bool(((rows >= 0).sum(1) >= count).all()):  # else what is near in the index is gone
                return self._nearest_of_found(rows, queries, count)
        if len(self) and 0 < len(queries) <= FEW and queries.device.type == "cpu":
            return self._nearest_to_few(queries, min(count, len(self)))
        similarity, row = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.long)
        row = row.to(queries.device)
        for first in range(0, len(self), COMPARED_AT_ONCE):
            part = slice(first, first + COMPARED_AT_ONCE)
            found = (queries @ self.codes[part].float().T) * self.scales[part].T
            best, place = found.topk(min(count, found.shape[1]))
            similarity, kept = torch.cat([similarity, best], 1).topk(min(count, similarity.shape[1] + best.shape[1]))
            row = torch.cat([row, place + first], 1).gather(1, kept)
        return similarity, row

    def _nearest_of_found(self, rows: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, of these rows: int64 (queries, n), -1 where there is none."""
        similarity = (self[rows.clamp(min=0).flatten()].unflatten(0, rows.shape) @ queries[..., None])[..., 0]
        best, place = similarity.masked_fill(rows < 0, -torch.inf).topk(count)
        return best, rows.gather(1, place)

    def _nearest_to_few(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, and as exact: by products of the codes with queries in eight bits, then by those in question.

        A similarity so found is off by at most the rounding of the query times the length of the vector (Cauchy and
        Schwarz), so that whatever lies more than twice that below the last of the best is not among them.
        """
        scale = queries.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (queries, 1)
        rounded = (queries / scale).round()
        error = (queries - rounded * scale).norm(dim=1)  # (queries,)
        longest = 1 + 0.5 * self.codes.shape[1] ** 0.5 * float(self.scales.max())  # a unit vector, and its rounding
        products = torch._int_mm(rounded.to(torch.int8), self.codes.T)  # (queries, edits)
        near = products * scale * self.scales.T
        least = near.topk(count).values[:, -1] - 2 * error * longest
        best = []
        for query, own, bound in zip(queries, near, least, strict=True):
            rows = (own >= bound).nonzero()[:, 0]
            similarity, place = (self[rows] @ query).topk(count)
            best.append((similarity, rows[place]))
        return torch.stack([similarity for similarity, _ in best]), torch.stack([rows for _, rows in best])


def owners_of(counts: Sequence[int]) -> Tensor:
    """The edit of each vector, int64 (vectors,), where edit i has counts[i] of them."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
