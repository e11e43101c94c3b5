"""New edits against those an adapter holds, and against each other: what asks the same, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megedit.edits import Edit, fold
from megedit.errors import MegError

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from torch import Tensor

    from megedit.adapter.adapter import Adapter
    from megedit.router.index import EditVectors
    from megedit.router.router import Router

Choice = Literal["replace", "skip", "keep"]
SHOWN = 10  # conflicts named in an error
NEIGHBOURS = 8  # most similar new edits, among which one that asks the same is looked for


@dataclass(frozen=True)
class Conflict:
    """Two edits that the model cannot, or should not, hold both.

    kind: `query`, the same query with another target; `rephrase`, what the router takes for the same query, with
    another target; `duplicate`, the same with the same target. old: an edit of the adapter or, where `same_file`, an
    earlier one of the new edits. similarity: the cosine of the two queries. number: of the old edit in the ledger.
    """

    kind: Literal["query", "rephrase", "duplicate"]
    new: Edit
    old: Edit
    similarity: float
    same_file: bool = False
    number: int | None = None

    def __str__(self) -> str:
        where = "in the same file" if self.same_file else "in the adapter"
        return (
            f"{self.new.id}: {self.new.prompt!r} -> {self.new.target!r}, but {where} "
            f"{self.old.id}: {self.old.prompt!r} -> {self.old.target!r} (similarity {self.similarity:.2f})"
        )


Resolve = Callable[[Conflict], Choice]


class Contradiction(MegError):
    """New edits contradict others, and it was not said what is to become of them."""

    def __init__(self, message: str, conflicts: Sequence[Conflict]) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)


def find_conflicts(adapter: Adapter, edits: Sequence[Edit], vectors: EditVectors, owners: Tensor) -> list[Conflict]:
    """The conflicts of new edits, with edits of the adapter and with earlier ones of the new edits.

    vectors, owners: of all that asks for the new edits, and the edit of each. Where both sides name a subject, or both
    a relation, and it is not the same, they ask for different things, however similar they sound.
    """
    router, firsts = adapter.router, _firsts(owners)
    queries, found = vectors.unpack()[firsts], list[Conflict]()
    similarity, nearest = router.vectors.nearest(queries, NEIGHBOURS * _most(router.owners))  # (edits, neighbours)
    near = router.owners[nearest]
    pairs: list[tuple[int, int, float]] = []  # a new edit, one of the adapter, their similarity
    for i, edit in enumerate(edits):
        same = dict.fromkeys(place for text in edit.asked() if (place := router.in_words(text)) is not None)
        others = [adapter.active[place] for place in same if router.edits[place].target != edit.target]
        found += [Conflict("query", edit, record.edit, 1.0, number=record.number) for record in others]
        if same:
            continue
        alike = [at for at, j in enumerate(near[i].tolist()) if _alike(edit, adapter.active[j].edit)]
        pairs += [(i, int(near[i, at]), float(similarity[i, at])) for at in alike[:1]]
    asks = _ask_the_same(router, [(edits[i], adapter.active[j].edit) for i, j, _ in pairs])
    for (i, j, value), same_question in zip(pairs, asks, strict=True):
        if same_question:
            new, record = edits[i], adapter.active[j]
            kind: Literal["duplicate", "rephrase"] = (
                "duplicate" if fold(new.target) == fold(record.edit.target) else "rephrase"
            )
            found.append(Conflict(kind, new, record.edit, value, number=record.number))
    return found + _among(router, edits, vectors, owners)


def _among(router: Router, edits: Sequence[Edit], vectors: EditVectors, owners: Tensor) -> list[Conflict]:
    """Conflicts of new edits with earlier ones, those of one query apart: these are refused when a file is read."""
    count = NEIGHBOURS * _most(owners)
    similarity, nearest = vectors.nearest(vectors.unpack()[_firsts(owners)], count)  # (edits, neighbours)
    near, pairs = owners[nearest.cpu()], list[tuple[int, int, float]]()
    for i, edit in enumerate(edits):
        earlier = [at for at, j in enumerate(near[i].tolist()) if j < i and _alike(edit, edits[j])]
        for at in earlier[:1]:
            j = int(near[i, at])
            if fold(edit.target) != fold(edits[j].target):
                pairs.append((i, j, float(similarity[i, at])))
    asks = _ask_the_same(router, [(edits[i], edits[j]) for i, j, _ in pairs])
    return [
        Conflict("rephrase", edits[i], edits[j], value, same_file=True)
        for (i, j, value), same_question in zip(pairs, asks, strict=True)
        if same_question
    ]


def _ask_the_same(router: Router, pairs: Sequence[tuple[Edit, Edit]]) -> list[bool]:
    """For each (new, old), whether the router takes the new edit's prompt for the old one's."""
    return router.asks([new.prompt for new, _ in pairs], [(old.prompt, old.target) for _, old in pairs])


def _most(owners: Tensor) -> int:
    """The most vectors that an edit has."""
    return int(owners.bincount().max()) if len(owners) else 1


def _firsts(owners: Tensor) -> Tensor:
    """The row of each edit's first vector, that of its prompt."""
    return owners.diff(prepend=owners.new_full((1,), -1)).nonzero()[:, 0]


def _alike(first: Edit, second: Edit) -> bool:
    """True if two edits may ask for the same: no subject and no relation tells them apart."""
    pairs = ((first.subject, second.subject), (first.relation, second.relation))
    return all(not (one and other) or one.casefold() == other.casefold() for one, other in pairs)


def resolved(conflicts: Sequence[Conflict], resolve: Resolve | None) -> dict[int, Choice]:
    """Map each conflict's index to the chosen action; duplicates are kept unless told otherwise.

    Raises Contradiction when a conflict needs a choice and there is none, or two targets of one query are to be kept.
    """
    if resolve is None:
        undecided = [conflict for conflict in conflicts if conflict.kind != "duplicate"]
        if undecided:
            listed = "".join(f"\n  {conflict}" for conflict in undecided[:SHOWN])
            more = f"\n  and {len(undecided) - SHOWN} more" if len(undecided) > SHOWN else ""
            raise Contradiction(
                f"{len(undecided)} of the new edits contradict others; nothing was changed. Replace the others "
                f"(--replace), leave the new ones out (--skip), or keep both where that can be (--keep):{listed}{more}",
                undecided,
            )
        return dict.fromkeys(range(len(conflicts)), "keep")
    choices = {index: resolve(conflict) for index, conflict in enumerate(conflicts)}
    for index, choice in choices.items():
        if choice == "keep" and conflicts[index].kind == "query":
            conflict = conflicts[index]
            raise Contradiction(f"One query cannot have two targets; replace or skip. {conflict}", [conflict])
    return choices
