"""The vectors of edits, eight bits a number: a hundred thousand of them in 40 MB, searched in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megedit.runtime.tensors import SCALE, pack

COMPARED_AT_ONCE = 8192  # edits; bounds the memory of a search


@dataclass(frozen=True)
class EditVectors:
    """Unit vectors as codes int8 (edits, C) and scales float32 (edits, 1); a vector is its codes times its scale."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def pack(cls, vectors: Tensor) -> EditVectors:
        """Of float32 vectors (edits, C). Packing what was packed before changes nothing."""
        packed = pack({"v": vectors})
        return cls(packed["v"].to(vectors.device), packed["v" + SCALE].float().to(vectors.device))

    @classmethod
    def from_rows(cls, rows: Sequence[bytes], size: int) -> EditVectors:
        """The vectors that `rows` wrote. Raises ValueError when a row has not the length of a vector of this size."""
        if any(len(row) != size + 2 for row in rows):
            raise ValueError(f"the vectors of the edits are not of length {size}")
        table = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), size + 2)
        codes = torch.from_numpy(table[:, :-2].view(np.int8).copy())
        scales = torch.from_numpy(table[:, -2:].copy().view(np.float16).astype(np.float32))
        return cls(codes, scales)

    def rows(self) -> list[bytes]:
        """Each vector as C bytes of int8 and two of its float16 scale."""
        codes, scales = self.codes.cpu().numpy(), self.scales.half().cpu().numpy()
        return [row.tobytes() + scale.tobytes() for row, scale in zip(codes, scales, strict=True)]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of these rows (int64 (n,)): float32 (n, C)."""
        return self.codes[rows].float() * self.scales[rows]

    def unpack(self) -> Tensor:
        """All vectors: float32 (edits, C)."""
        return self.codes.float() * self.scales

    def to(self, device: str | torch.device) -> EditVectors:
        return EditVectors(self.codes.to(device), self.scales.to(device))

    def nearest(self, queries: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """The most similar edits of unit vectors (float32 (queries, C)), best first.

        Returns their similarities, cosines float32 (queries, count), and their rows, int64 (queries, count); fewer
        columns where there are fewer edits.
        """
        similarity, row = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.long)
        row = row.to(queries.device)
        for first in range(0, len(self), COMPARED_AT_ONCE):
            part = slice(first, first + COMPARED_AT_ONCE)
            found = (queries @ self.codes[part].float().T) * self.scales[part].T
            best, place = found.topk(min(count, found.shape[1]))
            similarity, kept = torch.cat([similarity, best], 1).topk(min(count, similarity.shape[1] + best.shape[1]))
            row = torch.cat([row, place + first], 1).gather(1, kept)
        return similarity, row
