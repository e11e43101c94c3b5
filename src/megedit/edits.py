"""Edits: what one is, and how files of them are read, checked and cleared of contradictions.

A file becomes records (`read_records`), each record becomes an `Edit` by one of three schemas
(plain, CounterFact, ZsRE), and a ledger refuses or drops edits that repeat or contradict an earlier
one. Whatever is wrong is told as a `MegError` that names the file, the place and the field.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from megedit.errors import MegError
from megedit.records import Record, kind_of, read_records

MAX_TARGET_CHARS = 2000

OnConflict = Literal["error", "first"]


@dataclass(frozen=True)
class Edit:
    """One piece of knowledge to write into the model: asked `prompt`, it is to answer `target`.

    `rephrases` are other wordings of the prompt, used to evaluate generality; `neighbours` are
    neighbourhood prompts, queries whose answer must not change, used to evaluate locality only.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    relation: str | None = None
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The edit as a JSON object of the plain schema, without its empty fields."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, fields: Mapping[str, object], *, where: str = "the edit") -> "Edit":
        """The edit that `to_json` wrote; MegError, beginning with `where`, if a field is not valid."""
        return _plain_edit(Record(where, None, fields))


@dataclass(frozen=True)
class Dropped:
    """A record that was left out of an edit set: where it stands and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class EditSet:
    """Edits with unique ids and no two targets for one query, and what was left out to get there."""

    edits: tuple[Edit, ...]
    source: str
    format: str
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __getitem__(self, index: int) -> Edit:
        return self.edits[index]

    @classmethod
    def from_edits(cls, edits: Iterable[Edit], *, on_conflict: OnConflict = "error") -> "EditSet":
        """An edit set made in Python, under the checks that files get; MegError as `read_edits`."""
        source = "edits"
        ledger = _Ledger(source, on_conflict)
        for number, edit in enumerate(edits, start=1):
            place = f"edit {number}"
            if not isinstance(edit, Edit):
                raise MegError(f"{source}, {place}: expected an Edit, got {kind_of(edit)}")
            ledger.add(Edit.from_json(asdict(edit), where=f"{source}, {place}"), place)
        if not ledger.kept:
            raise MegError(f"{source}: the list is empty; give at least one edit")
        return cls(tuple(ledger.kept), source, "python", tuple(ledger.dropped))


def read_edits(path: str | Path, *, limit: int | None = None, on_conflict: OnConflict = "error") -> EditSet:
    """Read a file of edits; the format is recognised from its content.

    Formats: JSONL, a JSON list, `{"edits": [...]}` or CSV with `prompt` and `target` (optional: `id`,
    `subject`, `relation`, `rephrases`, `neighbours`; in CSV the last two are separated by `|`), and
    JSONL or JSON of the CounterFact (ROME) and ZsRE (MEND) schemas. Reading stops once `limit` edits
    are kept. A record that repeats an earlier query and target is dropped; one that contradicts an
    earlier target is an error, or dropped with `on_conflict="first"`, which also drops the second
    target of a same subject and relation. CounterFact neighbours about an edited subject are left out.

    Raises:
        MegError: the file, or a record of it, cannot be used.
    """
    if limit is not None and limit < 1:
        raise MegError(f"limit is {limit}; it must be at least 1")
    container, records = read_records(path, columns=("prompt", "target"))
    ledger = _Ledger(str(path), on_conflict)
    neighbour_subjects: dict[str, tuple[str | None, ...]] = {}
    schema = ""
    for record in records:
        schema = schema or _schema_of(record)
        edit = _SCHEMAS[schema](record)
        if ledger.add(edit, record.place) and schema == "counterfact":
            neighbour_subjects[edit.id] = _neighbour_subjects(record, len(edit.neighbours))
        if len(ledger.kept) == limit:
            break
    edits = _drop_edited_neighbours(ledger.kept, neighbour_subjects)
    return EditSet(tuple(edits), str(path), f"{schema} {container}", tuple(ledger.dropped))


# ---------------------------------------------------------------------------------------------------
# Text


def normalise_query(text: str) -> str:
    """The form in which two queries count as the same: case, width, spacing, closing marks ignored."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.rstrip("?.!: ") or folded


class SubjectIndex:
    """Tells whether a text names one of many subjects, as whole words, at a cost free of their number."""

    def __init__(self, subjects: Iterable[str]) -> None:
        self._names = {_words(subject) for subject in subjects}
        self._lengths = sorted({len(name) for name in self._names})

    def __contains__(self, subject: str) -> bool:
        return _words(subject) in self._names

    def named_in(self, text: str) -> bool:
        """True if `text` contains one of the subjects as whole words, in any case."""
        words = _words(text)
        return any(words[i : i + n] in self._names for n in self._lengths for i in range(len(words) - n + 1))


def _words(text: str) -> tuple[str, ...]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(re.findall(r"\w+", folded)) or (folded,)


# ---------------------------------------------------------------------------------------------------
# Schemas


def _plain_edit(record: Record) -> Edit:
    return Edit(
        id=record.identifier("id"),
        prompt=record.text("prompt"),
        target=record.text("target", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation"),
        rephrases=record.texts("rephrases"),
        neighbours=record.texts("neighbours"),
    )


def _counterfact_edit(record: Record) -> Edit:
    """The schema of CounterFact (Meng et al. 2022, arXiv:2202.05262)."""
    template, subject = record.text("requested_rewrite.prompt"), record.text("requested_rewrite.subject")
    if "{}" not in template:
        record.fail("the field `requested_rewrite.prompt` must hold {} where the subject goes")
    return Edit(
        id=record.identifier("case_id"),
        prompt=template.replace("{}", subject),
        target=record.text("requested_rewrite.target_new.str", MAX_TARGET_CHARS),
        subject=subject,
        relation=record.optional_text("requested_rewrite.relation_id"),
        rephrases=record.texts("x_paraphrase_clean") or record.texts("paraphrase_prompts"),
        neighbours=record.texts("neighborhood_prompts"),
    )


def _zsre_edit(record: Record) -> Edit:
    """The schema of ZsRE as MEND has it (Mitchell et al. 2022, arXiv:2110.11309)."""
    rephrases = (record.optional_text("rephrase"), record.optional_text("rephrase_2"))
    unrelated = record.optional_text("loc")
    return Edit(
        id=record.identifier("case_id"),
        prompt=record.text("src"),
        target=record.text("alt", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation_id"),
        rephrases=tuple(text for text in rephrases if text),
        neighbours=(unrelated,) if unrelated else (),
    )


_SCHEMAS: dict[str, Callable[[Record], Edit]] = {
    "plain": _plain_edit,
    "counterfact": _counterfact_edit,
    "zsre": _zsre_edit,
}


def _schema_of(record: Record) -> str:
    """The schema of a file, told from the fields of its first record."""
    if "requested_rewrite" in record.fields:
        return "counterfact"
    if "src" in record.fields:
        return "zsre"
    if "prompt" in record.fields or "target" in record.fields:
        return "plain"
    found = ", ".join(f"`{name}`" for name in record.fields) or "none"
    record.fail(
        "the schema is unknown; give each record `prompt` and `target`, or the fields of CounterFact "
        f"(`requested_rewrite`) or ZsRE (`src`, `alt`) (found: {found[:200]})"
    )


def _neighbour_subjects(record: Record, count: int) -> tuple[str | None, ...]:
    """The subject of each CounterFact neighbour, None where it is not known."""
    subjects = record.get("x_neighborhood_subjects")
    if not isinstance(subjects, list) or len(subjects) != count:
        return (None,) * count
    return tuple(subject if isinstance(subject, str) else None for subject in subjects)


def _drop_edited_neighbours(edits: list[Edit], neighbour_subjects: Mapping[str, tuple[str | None, ...]]) -> list[Edit]:
    """Without the neighbours about an edited subject: their answer may rightly change.

    Where the subject of a neighbour is not known, it is looked for in the text among the edited
    subjects of the same relation.
    """
    if not neighbour_subjects:
        return edits
    by_relation: dict[str | None, list[str]] = {}
    for edit in edits:
        by_relation.setdefault(edit.relation, []).append(edit.subject or "")
    edited = SubjectIndex(subject for subjects in by_relation.values() for subject in subjects)
    edited_by_relation = {relation: SubjectIndex(subjects) for relation, subjects in by_relation.items()}

    def kept(edit: Edit) -> Iterator[str]:
        for neighbour, subject in zip(edit.neighbours, neighbour_subjects[edit.id], strict=True):
            known = subject in edited if subject else edited_by_relation[edit.relation].named_in(neighbour)
            if not known:
                yield neighbour

    return [replace(edit, neighbours=tuple(kept(edit))) for edit in edits]


# ---------------------------------------------------------------------------------------------------
# Repetitions and contradictions


class _Ledger:
    """The edits kept so far, by query, id, and subject and relation, and the records left out."""

    def __init__(self, source: str, on_conflict: OnConflict) -> None:
        if on_conflict not in ("error", "first"):
            raise MegError(f"on_conflict is {on_conflict!r}; it must be 'error' or 'first'")
        self.kept: list[Edit] = []
        self.dropped: list[Dropped] = []
        self._source = source
        self._keep_first = on_conflict == "first"
        self._places: dict[str, str] = {}  # by id
        self._by_query: dict[str, Edit] = {}
        self._by_fact: dict[tuple[str, str], Edit] = {}

    def add(self, edit: Edit, place: str) -> bool:
        """Keep the edit and return True, or note why it is dropped; MegError if neither may be done."""
        query = normalise_query(edit.prompt)
        if earlier := self._by_query.get(query):
            first = self._places[earlier.id]
            if edit.target == earlier.target:
                return self._drop(place, f"same query and target as {first}")
            if not self._keep_first:
                raise MegError(
                    f"{self._source}, {place}: this has the query of {first} but another target "
                    f"({edit.target[:60]!r}, there {earlier.target[:60]!r}); remove one of the two, or keep "
                    'the first of each with on_conflict="first" (--on-conflict first)'
                )
            return self._drop(place, f"same query as {first}, another target")
        fact = (edit.subject.casefold(), edit.relation) if edit.subject and edit.relation else None
        if fact and self._keep_first and (earlier := self._by_fact.get(fact)) and earlier.target != edit.target:
            return self._drop(place, f"same subject and relation as {self._places[earlier.id]}, another target")
        if edit.id in self._places:
            raise MegError(
                f"{self._source}, {place}: the id {edit.id[:60]!r} is that of {self._places[edit.id]}; "
                "give each edit an id of its own"
            )
        self.kept.append(edit)
        self._places[edit.id] = place
        self._by_query[query] = edit
        if fact:
            self._by_fact.setdefault(fact, edit)
        return True

    def _drop(self, place: str, reason: str) -> bool:
        self.dropped.append(Dropped(place, reason))
        return False
