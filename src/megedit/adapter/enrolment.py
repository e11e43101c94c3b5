"""The edits of an adapter as its router needs them: read from the ledger, or taken over from another revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megedit.adapter.ledger import Ledger, Records, asked_of
from megedit.adapter.weights import from_bytes
from megedit.router.index import EditVectors
from megedit.router.router import Enrolled


@dataclass(frozen=True)
class Enrolment:
    """The edits of a revision.

    records: all of them. edits: those in force. vectors: of their texts. owners: int64 (vectors,), the edit of each.
    collected: the neurons, float32 (L,) by number of the edit, of those whose answers the generator does not give.
    """

    records: Records
    edits: Sequence[Enrolled]
    vectors: EditVectors
    owners: Tensor
    collected: dict[int, Tensor]

    @classmethod
    def empty(cls, encoder_size: int, device: torch.device) -> Enrolment:
        """No edits."""
        codes = torch.zeros(0, encoder_size, dtype=torch.int8, device=device)
        vectors = EditVectors(codes, torch.zeros(0, 1, device=device))
        return cls(Records([]), [], vectors, torch.zeros(0, dtype=torch.long, device=device), {})

    def at(self, ledger: Ledger, weight_size: int) -> Enrolment:
        """The edits of the last revision of a ledger; what is new is read, what is the same is taken from these.

        Raises KeyError, TypeError, ValueError or MegError where the ledger is damaged.
        """
        records = ledger.records().reading_as(self.records)
        active = records.having("active")
        contents = active.contents
        places = {own: place for place, own in enumerate(self.records.having("active").contents)}
        new = [own for own in contents if own not in places]
        places |= {own: len(self.edits) + place for place, own in enumerate(new)}
        edits, vectors, owners = self._and_read(ledger, new)

        order = [places[own] for own in contents]
        vectors, owners = vectors.of_edits(owners, torch.tensor(order, dtype=torch.long, device=owners.device))
        edits = [
            edits[place] if edits[place].learned == now else replace(edits[place], learned=now)
            for place, (_, now) in zip(order, active.states, strict=True)
        ]
        apart = active.having("active", generated=False).numbers
        collected = self._collected(ledger, apart, {number for number, _ in new}, weight_size)
        return Enrolment(records, edits, vectors.indexed(), owners, collected)

    def _and_read(self, ledger: Ledger, new: Sequence[tuple[int, str]]) -> tuple[list[Enrolled], EditVectors, Tensor]:
        """These edits, and behind them others (number and content), with the vectors and owners of all."""
        asked = [asked_of(content) for _, content in new]
        size, device = self.vectors.codes.shape[1], self.owners.device
        vectors, owners = EditVectors.from_bytes(ledger.vectors([number for number, _ in new]), size)
        if owners.bincount(minlength=len(new)).tolist() != [len(texts) for texts, _ in asked]:
            raise ValueError("there are not as many vectors as texts that ask for its edits")
        return (
            [*self.edits, *(Enrolled(texts, target) for texts, target in asked)],
            self.vectors.and_then(vectors.to(device)),
            torch.cat([self.owners, owners.to(device) + len(self.edits)]),
        )

    def _collected(self, ledger: Ledger, numbers: Sequence[int], new: set[int], weight_size: int) -> dict[int, Tensor]:
        """The collected neurons of edits by their numbers. new: numbers of edits that are not among these."""
        unread = [number for number in numbers if number in new or number not in self.collected]
        read = dict(zip(unread, from_bytes(ledger.neurons(unread), weight_size), strict=True))
        return {number: read[number] if number in read else self.collected[number] for number in numbers}
