"""A batch whose rows come and go while their answers are generated, without computing anything twice.

    columns:   padding | prompt, answer so far but its last token | last token
    computed:          | keys and values, in the cache            | by the next step

Rows are padded on the left, so that all of them end in the same column. New prompts are computed by themselves and put
beside the others; what has ended leaves, and so do columns that are padding in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from megedit.lm.backbone import Backbone
from megedit.lm.batches import position_ids
from megedit.lm.structure import cache_argument

UNEVEN = 2.0  # prompts computed together: the longest is at most so many times the shortest, and so many columns more
SPARE = 32


class RollingBatch:
    """ids, mask: int64 (rows, columns). cache: of all columns but the last, None where none can be kept."""

    def __init__(self, backbone: Backbone, pad_id: int, cached: bool = True) -> None:
        """cached: whether what is computed can be kept; not where attention is local or the prompt is edited, too."""
        self._backbone, self._pad_id = backbone, pad_id
        self._cached = cached and not backbone.local_attention
        self.ids = torch.zeros(0, 0, dtype=torch.long, device=backbone.device)
        self.mask = torch.zeros_like(self.ids)
        self.cache: DynamicCache | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """Columns."""
        return self.ids.shape[1]

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments for `generate`."""
        return {"input_ids": self.ids, "attention_mask": self.mask, cache_argument(self._backbone.model): self.cache}

    def join(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Put rows behind those that are there; returns the order in which the prompts now stand."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for part in _even_parts([prompts[i] for i in order]):
            ids, mask = self._padded(part)
            self._beside(ids, mask, self._computed(ids, mask))
        return order

    def keep(self, rows: Sequence[int], output: ModelOutput) -> None:
        """Go on with some of the rows. output: what `generate` returned for the batch."""
        sequences, cache = output["sequences"], output.get(cache_argument(self._backbone.model))
        index = torch.tensor(list(rows), dtype=torch.long, device=self.ids.device)
        new = sequences.shape[1] - self.width
        self.ids = sequences[index]
        self.mask = F.pad(self.mask[index], (0, new), value=1)
        first = int(self.mask.any(0).int().argmax()) if len(index) else self.width  # the first column with a token
        self.ids, self.mask = self.ids[:, first:], self.mask[:, first:]
        self.cache = None
        if self._cached and cache is not None and len(index):
            self.cache = DynamicCache([(k[index, :, first:], v[index, :, first:]) for k, v in _tensors(cache)])

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the left, and their mask: int64 (rows, columns)."""
        width = max(map(len, rows))
        filled = [[self._pad_id] * (width - len(row)) + list(row) for row in rows]
        ids = torch.tensor(filled, device=self.ids.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        return ids, (torch.arange(width, device=ids.device) >= width - lengths[:, None]).long()

    def _computed(self, ids: Tensor, mask: Tensor) -> DynamicCache | None:
        """The cache of all columns but the last."""
        if not self._cached or ids.shape[1] < 2:
            return None
        positions = position_ids(mask)[:, :-1]
        inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions}
        return self._backbone.context(inputs)

    def _beside(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> None:
        """Put rows below the others, all as wide as the widest."""
        width = max(self.width, ids.shape[1])
        before, behind = width - self.width, width - ids.shape[1]  # columns of padding for either part
        if not len(self):
            self.ids, self.mask, self.cache = ids, mask, cache
            return
        own = self.cache
        self.ids = torch.cat([F.pad(self.ids, (before, 0), value=self._pad_id), F.pad(ids, (behind, 0), value=0)])
        self.mask = torch.cat([F.pad(self.mask, (before, 0)), F.pad(mask, (behind, 0))])
        self.ids = self.ids.masked_fill(self.mask == 0, self._pad_id)
        if own is None or cache is None:
            self.cache = None
            return

        def joined(above: Tensor, below: Tensor) -> Tensor:
            return torch.cat([F.pad(above, (0, 0, before, 0)), F.pad(below, (0, 0, behind, 0))])

        layers = zip(_tensors(own), _tensors(cache), strict=True)
        self.cache = DynamicCache([(joined(k, other_k), joined(v, other_v)) for (k, v), (other_k, other_v) in layers])


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer: (rows, heads, columns, size)."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _even_parts(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows, the shortest first, in parts of about one length, so that little is padding."""
    part: list[Sequence[int]] = []
    for row in rows:
        if part and len(row) > UNEVEN * len(part[0]) + SPARE:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
