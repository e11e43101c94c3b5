"""The verifier: reads a query beside an edit, prompt and target, and says whether the query asks for the edit.

A cross-encoder: both texts go through one BERT-like network as a pair, so that it sees where they differ. Similarity
cannot tell: a negated question is nearer to an edit than most of its rephrases. Its weights are all-MiniLM-L6-v2's and
low-rank changes to them, which docs/reading.md tells of.

Two networks that were trained apart are wrong in different places. The first reads all edits that come into question,
and the second the one that it is surest of, which then counts with the mean of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from megedit.edits import clean_query
from megedit.encoder import TextEncoder, longest_first, token_ids
from megedit.errors import MegError
from megedit.lm.loading import resolve_folder
from megedit.runtime.device import default_dtype, mixed_precision
from megedit.runtime.files import sha256_of
from megedit.runtime.lowrank import apply_changes
from megedit.runtime.shipped import SECOND_VERIFIER
from megedit.runtime.tensors import load_tensors
from megedit.settings import MINILM

WINDOW = 192  # tokens of a pair
EDIT_WINDOW = 64  # of them, at most, of the edit
TARGET_WORDS = 12  # of the target that are read
READ_AT_ONCE = 64  # pairs
HEAD = "head."

Tokens = tuple[list[int], list[int]]  # ids and segments of a pair


class Verifier(nn.Module):
    """Pairs of a query and an edit -> logits; the higher, the more surely the query asks for the edit.

    second: the one that is asked beside it, if any.
    """

    second: Verifier | None

    def __init__(self, name: str = MINILM) -> None:
        """MiniLM's weights and a new head. name: its folder or package; nothing is downloaded."""
        super().__init__()
        encoder = TextEncoder(resolve_folder(name))
        self.tokenizer, self.model = encoder.tokenizer, encoder.model
        self.model.register_module("pooler", None)  # which nothing reads
        self.head = nn.Linear(self.model.config.hidden_size, 1)
        self.compute_dtype = torch.float32
        self.second = None

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def tokens(self, queries: Sequence[str], edits: Sequence[str]) -> list[Tokens]:
        """Each pair's tokens; of a long query, and of a long edit, the end is read."""
        texts = [clean_query(query) for query in queries], edits
        read, held = (token_ids(self.tokenizer, of, add_special_tokens=False) for of in texts)
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found = []
        for query, edit in zip(read, held, strict=True):
            edit = edit[-EDIT_WINDOW:]
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
    def score(self, queries: Sequence[str], edits: Sequence[str]) -> Tensor:
        """This network's logits of pairs, the edits as `edit_text` gives them: float32 (pairs,), on the CPU."""
        rows = self.tokens(queries, edits)
        order = longest_first([ids for ids, _ in rows])
        logits = torch.zeros(len(rows))
        for first in range(0, len(order), READ_AT_ONCE):
            part = order[first : first + READ_AT_ONCE]
            batch = [tensor.to(self.device) for tensor in padded([rows[i] for i in part])]
            with mixed_precision(self.device, self.compute_dtype):
                logits[part] = self(*batch).float().cpu()
        return logits

    def read(self, queries: Sequence[str], edits: Sequence[Sequence[str]]) -> list[list[float]]:
        """The logits of each query beside each of its own edits, at least one.

        That of the edit with the highest is the mean with the second verifier's.
        """
        scores = self.score(
            [query for query, of in zip(queries, edits, strict=True) for _ in of], [text for of in edits for text in of]
        )
        found = [own.tolist() for own in scores.split([len(of) for of in edits])]
        if self.second is not None:
            best = [own.index(max(own)) for own in found]
            others = self.second.score(queries, [of[i] for of, i in zip(edits, best, strict=True)]).tolist()
            for own, i, other in zip(found, best, others, strict=True):
                own[i] = (own[i] + other) / 2
        return found


@dataclass(frozen=True)
class File:
    """A file, equal to others of the same content."""

    path: Path = field(compare=False)
    digest: str


def load_verifier(path: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Verifier:
    """A trained verifier, for use only: one for all that ask for the same. path: of its head and low-rank changes.

    The second one is read from beside it, where there is one. dtype: of matrix products, by default what is fast on the
    device. Raises MegError where a file is damaged.
    """
    files = [File(of, sha256_of(of)) for of in (path, path.with_name(SECOND_VERIFIER)) if of.is_file() or of == path]
    return _loaded(tuple(files), torch.device(device), dtype or default_dtype(device))


@lru_cache(maxsize=2)
def _loaded(files: tuple[File, ...], device: torch.device, dtype: torch.dtype) -> Verifier:
    verifier, *others = (_changed(file, dtype) for file in files)
    for second in others:
        second.model.embeddings = verifier.model.embeddings  # which no training changes
        verifier.second = second
    return verifier.to(device).eval().requires_grad_(False)


def _changed(file: File, dtype: torch.dtype) -> Verifier:
    """A verifier with the head and changes in a file."""
    verifier = Verifier()
    try:
        stored = load_tensors(file.path)
        head = {name.removeprefix(HEAD): tensor for name, tensor in stored.items() if name.startswith(HEAD)}
        verifier.head.load_state_dict(head)
        apply_changes(verifier.model, {name: t for name, t in stored.items() if not name.startswith(HEAD)})
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise MegError(f"The verifier in {file.path} could not be loaded: {error}") from error
    verifier.compute_dtype = dtype
    return verifier


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
