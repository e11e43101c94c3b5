"""The checks of an edit set: repetitions, contradictions, edits that change nothing, neighbours that are edited."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, NoReturn

from megedit.edits.schemas import Edit, ParsedRow, Question
from megedit.edits.subjects import SubjectIndex, tell_apart
from megedit.edits.text import fold, normalise_query, query_id
from megedit.errors import MegError

OnConflict = Literal["error", "first"]

_Fact = tuple[str, str, frozenset[str]]
_EDITED_NEIGHBOURS = "only the neighbourhood prompts about what is edited"


@dataclass(frozen=True)
class Dropped:
    """A part of the data that an edit set leaves out: its place, the kind of reason, and the detail of this case."""

    where: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The kind of reason with the detail behind it."""
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


class Kept(NamedTuple):
    """The content of an edit set; see `EditSet`."""

    edits: tuple[Edit, ...]
    dropped: tuple[Dropped, ...]
    questions: tuple[Question, ...]
    instances: dict[str, tuple[str, ...]]


class Builder:
    """Checks edits row by row: keeps those that can be made, with their questions, and notes what it leaves out."""

    def __init__(self, source: str, on_conflict: OnConflict) -> None:
        if on_conflict not in ("error", "first"):
            raise MegError(f"on_conflict is {on_conflict!r}; it must be 'error' or 'first'")
        self.kept: list[Edit] = []
        self.dropped: list[Dropped] = []
        self.instances: dict[str, tuple[str, ...]] = {}
        self._source = source
        self._keep_first = on_conflict == "first"
        self._questions: list[Question] = []
        self._neighbour_subjects: dict[str, tuple[str | None, ...]] = {}  # by id
        self._places: dict[str, str] = {}  # by id
        self._by_query: dict[str, Edit] = {}
        self._by_text: dict[str, Edit] = {}  # by all that asks for an edit
        self._by_fact: dict[_Fact, list[Edit]] = {}

    def add(self, row: ParsedRow, place: str) -> None:
        """Keep all of a row, or nothing and note why; MegError if neither may be done."""
        row = self._with_free_id(row)
        members: list[Edit] = []
        new: list[Edit] = []
        reason = None if row.edits else ("no target", "")
        for edit in row.edits:
            same = self._by_query.get(normalise_query(edit.prompt))
            if row.case is not None and same and same.target == edit.target:
                members.append(same)
                continue
            if reason := self._reason_against(edit, same, row.old_answers, place):
                break
            self._keep(edit, place)
            new.append(edit)
            members.append(edit)
        if reason:
            self._forget(new)
            self.dropped.append(Dropped(place, *reason))
            return
        if row.case is not None:
            self._keep_case(row.case, members, place)
        if row.neighbour_subjects is not None:
            self._neighbour_subjects[members[0].id] = row.neighbour_subjects
        self._questions += row.questions

    def build(self) -> Kept:
        """All that was kept, without the neighbours that are edited; MegError if it is nothing."""
        if not self.kept:
            first = self.dropped[0]
            raise MegError(
                f"{self._source}: no edit is left, all {len(self.dropped)} records were left out "
                f"({first.where}: {first.reason}); give at least one edit that can be made"
            )
        edited = _Edited(self.kept, with_subjects=bool(self._neighbour_subjects))
        edits, questions = [], []
        gone: dict[str, set[str]] = {edit.id: set() for edit in self.kept}
        for edit in self.kept:
            subjects = self._neighbour_subjects.get(edit.id)
            free = tuple(edited.without(edit.neighbours, edit.relation, subjects))
            edits.append(replace(edit, neighbours=free))
            gone[edit.id].update(set(edit.neighbours).difference(free))
        for question in self._questions:
            if question.kind == "locality" and edited.asked_in(question.query):
                gone[question.group].add(question.query)
            else:
                questions.append(question)
        without = (
            Dropped(self._places[key], _EDITED_NEIGHBOURS, str(len(texts))) for key, texts in gone.items() if texts
        )
        return Kept(tuple(edits), (*self.dropped, *without), tuple(questions), self.instances)

    def _with_free_id(self, row: ParsedRow) -> ParsedRow:
        """The row with a longer id where its own was made from the prompt and another query has the same by chance."""
        if len(row.edits) != 1:
            return row
        (edit,) = row.edits
        if edit.id not in self._places or edit.id != query_id(edit.prompt):
            return row
        if normalise_query(edit.prompt) in self._by_query:  # it is dropped or refused as the same query
            return row
        longer = query_id(edit.prompt, 16)
        questions = tuple(replace(question, group=longer) for question in row.questions)
        return replace(row, edits=(replace(edit, id=longer),), questions=questions)

    def _reason_against(
        self, edit: Edit, same: Edit | None, old_answers: tuple[str, ...], place: str
    ) -> tuple[str, str] | None:
        """The reason to drop an edit, as kind and detail, or None; `same` is the earlier one of its query."""
        if fold(edit.target) in {fold(text) for text in (*old_answers, edit.target_true or "")}:
            return "the target is the old answer", repr(edit.target[:60])
        if same:
            if edit.target == same.target:
                return "same query and target as an earlier one", self._places[same.id]
            if not self._keep_first:
                self._fail_as_contradiction(edit, same, place)
            return "same query as an earlier one, another target", self._places[same.id]
        asked = map(normalise_query, edit.asked())
        asks = (self._by_text[text] for text in asked if text in self._by_text)
        if other := next((earlier for earlier in asks if earlier.target != edit.target), None):
            if not self._keep_first:
                self._fail_as_contradiction(edit, other, place)
            return "a wording of an earlier one, another target", self._places[other.id]
        fact = _fact(edit)
        for earlier in self._by_fact.get(fact, ()) if fact and self._keep_first else ():
            if earlier.target != edit.target and not tell_apart(earlier.prompt, edit.prompt):
                return "same subject and relation as an earlier one, another target", self._places[earlier.id]
        return None

    def _fail_as_contradiction(self, edit: Edit, same: Edit, place: str) -> NoReturn:
        words = "query" if normalise_query(edit.prompt) == normalise_query(same.prompt) else "query or a wording"
        raise MegError(
            f"{self._source}, {place}: this has the {words} of {self._places[same.id]} but another target "
            f"({edit.target[:60]!r}, there {same.target[:60]!r}); remove one of the two, or keep "
            'the first of each with on_conflict="first"'
        )

    def _keep_case(self, case: str, members: list[Edit], place: str) -> None:
        if case in self.instances:
            raise MegError(
                f"{self._source}, {place}: the case {case[:60]} is already there; give each case an id of its own"
            )
        self.instances[case] = tuple(dict.fromkeys(edit.id for edit in members))

    def _keep(self, edit: Edit, place: str) -> None:
        if edit.id in self._places:
            raise MegError(
                f"{self._source}, {place}: the id {edit.id[:60]!r} is that of {self._places[edit.id]}; "
                "give each edit an id of its own"
            )
        self.kept.append(edit)
        self._places[edit.id] = place
        self._by_query[normalise_query(edit.prompt)] = edit
        for text in edit.asked():
            self._by_text.setdefault(normalise_query(text), edit)
        if fact := _fact(edit):
            self._by_fact.setdefault(fact, []).append(edit)

    def _forget(self, edits: list[Edit]) -> None:
        """Undo `_keep` for the edits kept last."""
        for edit in edits:
            self.kept.pop()
            del self._places[edit.id], self._by_query[normalise_query(edit.prompt)]
            for text in map(normalise_query, edit.asked()):
                if self._by_text[text] is edit:
                    del self._by_text[text]
            if fact := _fact(edit):
                self._by_fact[fact].remove(edit)


def _fact(edit: Edit) -> _Fact | None:
    """The subject, relation and numbers that an edit asks for; None where it names no subject or relation."""
    if not edit.subject or not edit.relation:
        return None
    numbers = frozenset(re.findall(r"\w*\d\w*", normalise_query(edit.prompt)))
    return edit.subject.casefold(), edit.relation, numbers


class _Edited:
    """Tells which queries ask for something that is edited: their answer may rightly change."""

    def __init__(self, edits: list[Edit], *, with_subjects: bool) -> None:
        self._prompts = {normalise_query(edit.prompt) for edit in edits}
        by_relation: dict[str | None, list[str]] = {}
        for edit in edits if with_subjects else ():
            by_relation.setdefault(edit.relation, []).append(edit.subject or "")
        self._subjects = SubjectIndex(subject for subjects in by_relation.values() for subject in subjects)
        self._by_relation = {relation: SubjectIndex(subjects) for relation, subjects in by_relation.items()}

    def asked_in(self, query: str) -> bool:
        """True if the query is the prompt of an edit."""
        return normalise_query(query) in self._prompts

    def without(
        self, neighbours: tuple[str, ...], relation: str | None, subjects: tuple[str | None, ...] | None
    ) -> Iterator[str]:
        """The neighbours that are not the prompt of an edit and, if they are about other subjects, not an edited one's.

        A neighbour whose subject is not known is an edited one's if it names that on its own, or, where the relation is
        the same, at all.
        """
        for i, neighbour in enumerate(neighbours):
            if self.asked_in(neighbour):
                continue
            if subjects is not None:
                subject = subjects[i]
                if subject in self._subjects if subject else self._names_edited(neighbour, relation):
                    continue
            yield neighbour

    def _names_edited(self, neighbour: str, relation: str | None) -> bool:
        return self._by_relation[relation].named_in(neighbour) or self._subjects.named_alone_in(neighbour)
