"""The query vectors a generator learns from: those of the edits, and what other wordings would make of them.

No rephrase of an edit is known in training. Two things are known of rephrases in general, from held-out facts on which
the encoder was not tuned either: what a sentence in front of a query does to its vector, and by how much, and in which
directions, the vector of a rephrase differs from that of its query.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megedit.encoder import TextEncoder
from megedit.generator.settings import GeneratorSettings
from megedit.pseudo import PseudoKnowledge

ENCODED_AT_ONCE = 512  # queries between two reports of progress


@dataclass(frozen=True)
class Conditions:
    """Unit vectors of queries: float32 queries (edits, C), noisy (wordings, edits, C), shifts (shifts, C).

    noisy: the edits' queries behind noise sentences. shifts: differences between rephrases and queries of other facts.
    Either may be empty.
    """

    queries: Tensor
    noisy: Tensor
    shifts: Tensor

    @classmethod
    def plain(cls, queries: Tensor) -> Conditions:
        """The queries as they are."""
        return cls(queries, queries.new_zeros(0, *queries.shape), queries.new_zeros(0, queries.shape[1]))

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A vector for each of the rows (int64 (B,)): float32 (B, C).

        Half of them behind a noise sentence, half of all moved by a shift, where there are such.
        """

        def chosen(count: int) -> tuple[Tensor, Tensor]:
            picked = (torch.rand(len(rows), generator=generator) < 0.5).nonzero()[:, 0]
            return picked, torch.randint(count, (len(picked),), generator=generator)

        vectors = self.queries[rows]
        if len(self.noisy):
            picked, wording = chosen(len(self.noisy))
            vectors[picked] = self.noisy[wording, rows[picked]]
        if len(self.shifts):
            picked, shift = chosen(len(self.shifts))
            vectors[picked] = F.normalize(vectors[picked] + self.shifts[shift], dim=1)
        return vectors


def anchored(vectors: Tensor, nearest: Tensor, share: float) -> Tensor:
    """Query vectors moved towards those of their nearest edits: all float32 (queries, C), unit length.

    A rephrase lies beside its edit, in a direction that differs from one to the next; the router has found the edit.
    """
    return F.normalize((1 - share) * vectors + share * nearest, dim=1)


def reworded(
    encoder: TextEncoder,
    queries: Sequence[str],
    held_out: PseudoKnowledge,
    settings: GeneratorSettings,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """`noisy` and `shifts` of `Conditions`, as the settings want them; progress counts the vectors of `noisy`."""
    chance = random.Random(seed)
    noisy = torch.zeros(settings.wordings if held_out.noise else 0, len(queries), encoder.size)
    for wording in noisy:
        for first in range(0, len(queries), ENCODED_AT_ONCE):
            part = [held_out.behind_noise(query, chance) for query in queries[first : first + ENCODED_AT_ONCE]]
            wording[first : first + ENCODED_AT_ONCE] = encoder.encode(part)
            progress(len(part))
    shifts = torch.zeros(0, encoder.size)
    pairs = [(fact.prompt, text) for fact in held_out.facts for text in fact.rephrases]
    if settings.wordings and pairs:
        shifts = encoder.encode([text for _, text in pairs]) - encoder.encode([prompt for prompt, _ in pairs])
    return {"noisy": noisy, "shifts": shifts}
