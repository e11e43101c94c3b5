"""Facts that are near to each other by the encoder, and questions that are near to facts: as a router meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megedit.edits import normalise_query
from megedit.encoder import TextEncoder
from training.corpus import ContrastFact

NEAREST = 32  # facts that are looked at
KEPT = 8  # of those, that are kept
ROWS = 1024  # queries compared at a time


@dataclass(frozen=True)
class Near:
    """What a router would take for candidates, though it asks for something else.

    facts: by the number of a fact, those of others whose prompts are nearest to its own. questions: questions about
    none of the facts, each with the numbers of the facts that are nearest.
    """

    facts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    questions: Sequence[tuple[str, Sequence[int]]] = ()


def nearest(facts: Sequence[ContrastFact], questions: Sequence[str], encoder: TextEncoder) -> Near:
    """Find them. A fact about the same subject, or one that a question names, is not taken: it may ask the same."""
    prompts = encoder.encode([fact.prompt for fact in facts])  # (facts, size)
    subjects = [fact.subject.casefold() for fact in facts]
    found: dict[int, list[int]] = {}
    for i, candidates in enumerate(_indices(prompts, prompts)):
        fact = facts[i]
        apart = [
            k
            for k in candidates
            if not (subjects[k] in subjects[i] or subjects[i] in subjects[k])
            and normalise_query(facts[k].prompt) not in fact.asking
        ]
        if apart:
            found[i] = apart[:KEPT]
    asked = _indices(encoder.encode(list(questions)), prompts)
    unnamed = [
        (text, [k for k in candidates if subjects[k] not in text.casefold()][:KEPT])
        for text, candidates in zip(questions, asked, strict=True)
    ]
    return Near(found, [(text, numbers) for text, numbers in unnamed if numbers])


def _indices(queries: Tensor, prompts: Tensor) -> list[list[int]]:
    """The prompts nearest to each query, the nearest first. queries: (queries, size). prompts: (prompts, size)."""
    count = min(NEAREST, len(prompts))
    parts = [(part @ prompts.T).topk(count).indices for part in queries.split(ROWS)]  # each (rows, count)
    return torch.cat(parts).tolist() if parts else []
