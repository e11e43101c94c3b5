"""Edit sets: files of edits read, checked and cleared of what cannot be used.

A file becomes rows (`read_rows`), each row becomes edits and questions by one of the schemas of `schemas.py`, and
`_Builder` refuses or drops what repeats or contradicts an earlier edit or changes nothing. Errors are `MegError`s that
name the file, the place and the field; `EditSet.dropped` lists what was left out.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NoReturn

from megedit.edits.columns import PlainNames
from megedit.edits.files import read_rows
from megedit.edits.rows import Row, kind_of
from megedit.edits.schemas import MAX_TARGET_CHARS, SCHEMAS, Edit, ParsedRow, Question, QuestionKind, schema_of
from megedit.edits.subjects import SubjectIndex
from megedit.edits.text import clean_query, fold, normalise_query, query_id
from megedit.errors import MegError

__all__ = [
    "MAX_TARGET_CHARS",
    "Dropped",
    "Edit",
    "EditSet",
    "OnConflict",
    "Question",
    "QuestionKind",
    "clean_query",
    "edits_of",
    "fold",
    "normalise_query",
    "query_id",
    "read_edits",
]

OnConflict = Literal["error", "first"]

_SUMMARISED_FROM = 6
_EDITED_NEIGHBOURS = "only the neighbourhood prompts about what is edited"


@dataclass(frozen=True)
class Dropped:
    """What was left out of an edit set: where it stands, the kind of reason, and what is special to this case."""

    where: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The kind of reason with the detail behind it."""
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@dataclass(frozen=True)
class EditSet:
    """Edits with unique ids and no two targets for one query, and what was left out to get there.

    `questions` are what a data set asks beside the prompts, rephrases and neighbours of its edits. `instances` are the
    cases of MQuAKE: by the id of each, the ids of the edits that its questions build on. An edit may be in several.
    """

    edits: tuple[Edit, ...]
    source: str
    format: str
    dropped: tuple[Dropped, ...] = ()
    questions: tuple[Question, ...] = ()
    instances: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __getitem__(self, index: int) -> Edit:
        return self.edits[index]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the edits, questions and instances, in hexadecimal; where they were read from does not count."""
        content = {
            "edits": [edit.to_json() for edit in self.edits],
            "questions": [asdict(question) for question in self.questions],
            "instances": dict(self.instances),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def dropped_summary(self) -> list[str]:
        """What was left out, a line each, or one line for a kind of reason that more than five records have."""
        counts = Counter(dropped.kind for dropped in self.dropped)
        lines: list[str] = []
        summarised: set[str] = set()
        for dropped in self.dropped:
            kind, count = dropped.kind, counts[dropped.kind]
            if count < _SUMMARISED_FROM:
                lines.append(f"{dropped.where}: left out, {dropped.reason}")
            elif kind not in summarised:
                lines.append(f"{count} records: left out, {kind} (first: {dropped.where})")
                summarised.add(kind)
        return lines

    @classmethod
    def from_edits(cls, edits: Iterable[Edit], *, on_conflict: OnConflict = "error") -> "EditSet":
        """An edit set made in Python, under the checks that files get; MegError as `read_edits`."""
        source = "edits"
        builder = _Builder(source, on_conflict)
        for number, edit in enumerate(edits, start=1):
            place = f"edit {number}"
            if not isinstance(edit, Edit):
                raise MegError(f"{source}, {place}: expected an Edit, got {kind_of(edit)}")
            builder.add(ParsedRow((Edit.from_json(asdict(edit), where=f"{source}, {place}"),)), place)
        if not builder.kept and not builder.dropped:
            raise MegError(f"{source}: the list is empty; give at least one edit")
        return builder.edit_set("python")

    @classmethod
    def of(cls, edits: Iterable[Edit], source: str) -> "EditSet":
        """The edits as they are, without the checks for contradictions, such as those of an adapter.

        Raises:
            MegError: there is no edit, something else than an edit, or two edits with one id.
        """
        members = tuple(edits)
        for edit in members:
            if not isinstance(edit, Edit):
                raise MegError(f"{source}: expected an Edit, got {kind_of(edit)}")
        repeated = [name for name, count in Counter(edit.id for edit in members).items() if count > 1]
        if repeated:
            raise MegError(f"{source}: the id {repeated[0][:60]!r} is there twice; give each edit an id of its own")
        if not members:
            raise MegError(f"{source}: there is no edit; give at least one")
        return cls(members, source, "edits")

    def only(self, ids: Collection[str], kind: str) -> "EditSet":
        """The edits with these ids, and the questions about nothing but them; the others are `dropped` as `kind`."""
        kept, others = set(ids), [edit for edit in self.edits if edit.id not in ids]
        instances = {case: members for case, members in self.instances.items() if kept.issuperset(members)}
        return replace(
            self,
            edits=tuple(edit for edit in self.edits if edit.id in kept),
            dropped=(*self.dropped, *(Dropped(f"edit {edit.id}", kind) for edit in others)),
            questions=tuple(q for q in self.questions if q.group in instances or q.group in kept - {*self.instances}),
            instances=instances,
        )


def read_edits(path: str | Path, *, limit: int | None = None, on_conflict: OnConflict = "error") -> EditSet:
    """Read a file of edits; the format is recognised from its content.

    Formats: JSONL, a JSON list, `{"edits": [...]}` or CSV with `prompt` and `target` (optional: `id`, `subject`,
    `relation`, `rephrases`, `neighbours`, `target_true`; in CSV `|` separates rephrases, and neighbours), and JSONL or
    JSON of the schemas of CounterFact (ROME), ZsRE (MEND), KnowEdit, MQuAKE and UnKE. Reading stops once `limit` edits,
    of MQuAKE `limit` cases, are kept. What is dropped, and why, is in `dropped`: see `edits_of`.

    Raises:
        MegError: the file, or a record of it, cannot be used.
    """
    container, rows = read_rows(path, required=("prompt", "target"))
    return edits_of(rows, str(path), container, limit=limit, on_conflict=on_conflict)


def edits_of(
    rows: Iterable[Row],
    source: str,
    container: str,
    *,
    schema: str | None = None,
    limit: int | None = None,
    on_conflict: OnConflict = "error",
) -> EditSet:
    """The edit set of records that all follow one `schema`, by default the one that the first of them shows.

    Dropped are records that repeat an earlier query and target, whose target is the old answer, or that name none;
    neighbours that are edited themselves; and with `on_conflict="first"` records that contradict an earlier target of
    the same query, or of the same subject and relation. A case of MQuAKE is kept or dropped as a whole, and an edit
    that several cases share is one edit. `source` and `container` name in errors and in `format` what is read.

    Raises:
        MegError: a record cannot be used, or contradicts an earlier one with `on_conflict="error"`, or none is left.
    """
    if limit is not None and limit < 1:
        raise MegError(f"limit is {limit}; it must be at least 1")
    builder, plain = _Builder(source, on_conflict), PlainNames(source)
    for row in rows:
        schema = schema or schema_of(row)
        builder.add(SCHEMAS[schema](plain(row) if schema == "plain" else row), row.place)
        if len(builder.instances or builder.kept) == limit:
            break
    if not builder.kept and not builder.dropped:
        raise MegError(f"{source}: there is no record; it needs at least one")
    return builder.edit_set(f"{schema} {container}")


# ---------------------------------------------------------------------------------------------------
# Repetitions, contradictions, and edits that change nothing


class _Builder:
    """What is kept so far, the edits by query, id, and subject and relation, and what was left out."""

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
        self._by_fact: dict[tuple[str, str], Edit] = {}

    def add(self, entry: ParsedRow, place: str) -> None:
        """Keep all of an entry, or nothing and note why; MegError if neither may be done."""
        entry = self._with_free_id(entry)
        members: list[Edit] = []
        new: list[Edit] = []
        reason = None if entry.edits else ("no target", "")
        for edit in entry.edits:
            same = self._by_query.get(normalise_query(edit.prompt))
            if entry.case is not None and same and same.target == edit.target:
                members.append(same)
                continue
            if reason := self._reason_against(edit, same, entry.old_answers, place):
                break
            self._keep(edit, place)
            new.append(edit)
            members.append(edit)
        if reason:
            self._forget(new)
            self.dropped.append(Dropped(place, *reason))
            return
        if entry.case is not None:
            self._keep_case(entry.case, members, place)
        if entry.neighbour_subjects is not None:
            self._neighbour_subjects[members[0].id] = entry.neighbour_subjects
        self._questions += entry.questions

    def edit_set(self, form: str) -> EditSet:
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
        return EditSet(tuple(edits), self._source, form, (*self.dropped, *without), tuple(questions), self.instances)

    def _with_free_id(self, entry: ParsedRow) -> ParsedRow:
        """The row with a longer id where its own was made from the prompt and another query has the same by chance."""
        if len(entry.edits) != 1:
            return entry
        (edit,) = entry.edits
        query = normalise_query(edit.prompt)
        if edit.id not in self._places or query in self._by_query or edit.id != query_id(edit.prompt):
            return entry
        longer = query_id(edit.prompt, 16)
        questions = tuple(replace(question, group=longer) for question in entry.questions)
        return replace(entry, edits=(replace(edit, id=longer),), questions=questions)

    def _reason_against(
        self, edit: Edit, same: Edit | None, old_answers: tuple[str, ...], place: str
    ) -> tuple[str, str] | None:
        """Why an edit is dropped, as kind and detail, None if it is not; `same` is the earlier one of its query."""
        if fold(edit.target) in {fold(text) for text in (*old_answers, edit.target_true or "")}:
            return "the target is the old answer", repr(edit.target[:60])
        if same:
            if edit.target == same.target:
                return "same query and target as an earlier one", self._places[same.id]
            if not self._keep_first:
                self._fail_as_contradiction(edit, same, place)
            return "same query as an earlier one, another target", self._places[same.id]
        fact = _fact(edit)
        if fact and self._keep_first and (earlier := self._by_fact.get(fact)) and earlier.target != edit.target:
            return "same subject and relation as an earlier one, another target", self._places[earlier.id]
        return None

    def _fail_as_contradiction(self, edit: Edit, same: Edit, place: str) -> NoReturn:
        raise MegError(
            f"{self._source}, {place}: this has the query of {self._places[same.id]} but another target "
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
        if fact := _fact(edit):
            self._by_fact.setdefault(fact, edit)

    def _forget(self, edits: list[Edit]) -> None:
        """Undo `_keep` for the edits kept last."""
        for edit in edits:
            self.kept.pop()
            del self._places[edit.id], self._by_query[normalise_query(edit.prompt)]
            if (fact := _fact(edit)) and self._by_fact.get(fact) is edit:
                del self._by_fact[fact]


def _fact(edit: Edit) -> tuple[str, str] | None:
    return (edit.subject.casefold(), edit.relation) if edit.subject and edit.relation else None


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
