"""Edit sets: files of edits read, checked and cleared of what cannot be used.

A file becomes rows (`read_rows`), each row becomes edits and questions by one of the schemas of `schemas.py`, and
`Builder` refuses or drops what repeats or contradicts an earlier edit or changes nothing. Errors are `MegError`s that
name the file, the place and the field; `EditSet.dropped` lists what was left out.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from megedit.edits.builder import Builder, Dropped, OnConflict
from megedit.edits.columns import PlainNames
from megedit.edits.files import read_rows
from megedit.edits.rows import Row, kind_of
from megedit.edits.schemas import SCHEMAS, Edit, ParsedRow, Question, schema_of
from megedit.errors import MegError

_SUMMARISED_FROM = 6


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
        """The lines that tell what was left out, or one line for a reason that more than five records have."""
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
        builder = Builder(source, on_conflict)
        for number, edit in enumerate(edits, start=1):
            place = f"edit {number}"
            if not isinstance(edit, Edit):
                raise MegError(f"{source}, {place}: expected an Edit, got {kind_of(edit)}")
            builder.add(ParsedRow((Edit.from_json(asdict(edit), where=f"{source}, {place}"),)), place)
        if not builder.kept and not builder.dropped:
            raise MegError(f"{source}: the list is empty; give at least one edit")
        return _checked(builder, source, "python")

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

    Containers: JSONL, JSON, CSV with any usual delimiter, Excel workbooks; in any usual encoding, gzipped or not.
    Schemas: the plain one, with `prompt` and `target` (optional: `id`, `subject`, `relation`, `rephrases`,
    `neighbours`, `target_true`; in tables `|` separates rephrases, and neighbours), or in JSON those of CounterFact
    (ROME), ZsRE (MEND), KnowEdit (EasyEdit), MQuAKE and UnKE; docs/datasets.md has them all. Reading stops once `limit`
    edits, of MQuAKE `limit` cases, are kept. `dropped` tells what is left out, and why: see `edits_of`.

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
    builder, plain = Builder(source, on_conflict), PlainNames(source)
    for row in rows:
        schema = schema or schema_of(row)
        builder.add(SCHEMAS[schema](plain(row) if schema == "plain" else row), row.place)
        if len(builder.instances or builder.kept) == limit:
            break
    if not builder.kept and not builder.dropped:
        raise MegError(f"{source}: there is no record; it needs at least one")
    return _checked(builder, source, f"{schema} {container}")


def _checked(builder: Builder, source: str, form: str) -> EditSet:
    kept = builder.build()
    return EditSet(kept.edits, source, form, kept.dropped, kept.questions, kept.instances)
