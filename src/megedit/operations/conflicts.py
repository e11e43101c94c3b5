"""New edits against those an adapter holds, and against each other: what asks the same, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megedit.edits import Edit, fold, normalise_query
from megedit.edits.subjects import tell_apart
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


def find_conflicts(adapter: Adapter, edits: Sequence[Edit], vectors: EditVectors) -> list[Conflict]:
    """The conflicts of new edits, at most two for each: with the adapter, and with an earlier one of the new edits.

    vectors: of the prompts of the new edits. Where both sides name a subject, or both a relation, and it is not the
    same, or where their numbers or names differ, they ask for different things, however similar they sound.
    """
    active = {normalise_query(record.edit.prompt): record for record in adapter.active}
    router, queries, found = adapter.router, vectors.unpack(), list[Conflict]()
    similarity, nearest = router.vectors.nearest(queries, NEIGHBOURS)  # (edits, neighbours)
    for i, edit in enumerate(edits):
        if same := active.get(normalise_query(edit.prompt)):
            if same.edit.target != edit.target:
                found.append(Conflict("query", edit, same.edit, 1.0, number=same.number))
            continue
        for at, row in enumerate(nearest[i].tolist()):
            near = adapter.routed[row]
            if near.status == "active" and _alike(edit, near.edit):
                if _asks_the_same(router, edit, queries[i], near.edit, router.vectors, row, near.generated):
                    same_target = fold(edit.target) == fold(near.edit.target)
                    kind: Literal["duplicate", "rephrase"] = "duplicate" if same_target else "rephrase"
                    found.append(Conflict(kind, edit, near.edit, float(similarity[i, at]), number=near.number))
                break
    return found + _among(router, edits, vectors)


def _among(router: Router, edits: Sequence[Edit], vectors: EditVectors) -> list[Conflict]:
    """Conflicts of new edits with earlier ones, those of one query apart: these are refused when a file is read."""
    queries, found = vectors.unpack(), list[Conflict]()
    similarity, nearest = vectors.nearest(queries, NEIGHBOURS)  # (edits, neighbours), themselves among them
    for i, edit in enumerate(edits):
        for at, j in enumerate(nearest[i].tolist()):
            if j < i and _alike(edit, edits[j]):
                other_target = fold(edit.target) != fold(edits[j].target)
                if other_target and _asks_the_same(router, edit, queries[i], edits[j], vectors, j, learned=False):
                    found.append(Conflict("rephrase", edit, edits[j], float(similarity[i, at]), same_file=True))
                break
    return found


def _asks_the_same(
    router: Router, new: Edit, query: Tensor, old: Edit, vectors: EditVectors, row: int, learned: bool
) -> bool:
    """True if the router, knowing the old edit alone, takes the new one's query (its vector (C,)) for the old one's.

    row: of the old edit's vector. learned: the familiarity network was trained on it.
    """
    from megedit.router.decision import Enrolled
    from megedit.router.index import EditVectors
    from megedit.router.router import Router

    one = EditVectors(vectors.codes[row : row + 1], vectors.scales[row : row + 1])
    alone = Router(router.network, one, [Enrolled(old.subject, learned=learned)], router.calibration)
    return bool(alone.route(query[None], [new.prompt]).familiar[0])


def _alike(first: Edit, second: Edit) -> bool:
    """True if two edits may ask for the same: no subject, relation, number or name tells them apart."""
    pairs = ((first.subject, second.subject), (first.relation, second.relation))
    same = all(not (one and other) or one.casefold() == other.casefold() for one, other in pairs)
    return same and not tell_apart(first.prompt, second.prompt)


def resolved(conflicts: Sequence[Conflict], resolve: Resolve | None) -> dict[int, Choice]:
    """Map each conflict's index to the chosen action; duplicates are kept unless told otherwise.

    Raises MegError when a conflict needs a choice and there is none, or two targets of one query are to be kept.
    """
    if resolve is None:
        undecided = [conflict for conflict in conflicts if conflict.kind != "duplicate"]
        if undecided:
            listed = "".join(f"\n  {conflict}" for conflict in undecided[:SHOWN])
            more = f"\n  and {len(undecided) - SHOWN} more" if len(undecided) > SHOWN else ""
            raise MegError(
                f"{len(undecided)} of the new edits contradict others; nothing was changed. Replace the others "
                f"(--replace), leave the new ones out (--skip), or keep both where that can be (--keep):{listed}{more}"
            )
        return dict.fromkeys(range(len(conflicts)), "keep")
    choices = {index: resolve(conflict) for index, conflict in enumerate(conflicts)}
    for index, choice in choices.items():
        if choice == "keep" and conflicts[index].kind == "query":
            raise MegError(f"One query cannot have two targets; replace or skip. {conflicts[index]}")
    return choices
