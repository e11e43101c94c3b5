"""Schemas: what one record of a data set says, as edits and further questions.

A schema is a function from a `Record` to an `Entry`; `schema_of` tells which one a file follows. Sources:
CounterFact (Meng et al. 2022, arXiv:2202.05262), ZsRE as in MEND (Mitchell et al. 2022, arXiv:2110.11309), KnowEdit
(Zhang et al. 2024, arXiv:2401.01286), MQuAKE (Zhong et al. 2023, arXiv:2305.14795), UnKEBench (Deng et al. 2025,
arXiv:2405.15349), and the files that their authors published.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from megedit.edits.rows import Record, kind_of

MAX_TARGET_CHARS = 2000

QuestionKind = Literal["multi_hop", "single_hop", "portability", "sub_question", "generation", "locality"]


@dataclass(frozen=True)
class Edit:
    """One piece of knowledge to write into the model: asked `prompt`, it is to answer `target`.

    `rephrases` are other wordings of the prompt, used to evaluate generality; `neighbours` are
    neighbourhood prompts, queries whose answer must not change, used to evaluate locality only;
    `target_true` is the old answer, the one from before the edit.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    relation: str | None = None
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    target_true: str | None = None

    def to_json(self) -> dict[str, object]:
        """The edit as a JSON object of the plain schema, without its empty fields."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, fields: Mapping[str, object], *, where: str = "the edit") -> "Edit":
        """The edit that `to_json` wrote; MegError, beginning with `where`, if a field is not valid."""
        return _plain(Record(where, None, fields)).edits[0]


@dataclass(frozen=True)
class Question:
    """A question of a data set beside the prompts, rephrases and neighbours of its edits.

    Kinds: `multi_hop` and `single_hop` (MQuAKE), `portability` (KnowEdit), `sub_question` (UnKE), `generation`
    (CounterFact: the beginning of a text, `answers` empty) and `locality` (a neighbour whose answer is known).
    `answers` are all the accepted answers; `group` is the id of the edit, or of the MQuAKE case, it belongs to.
    """

    kind: QuestionKind
    query: str
    answers: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Entry:
    """What one record says: its edits, none if it names no target, and the questions that belong to them.

    `old_answers` are all the answers from before the edit; `case` is the id of an MQuAKE case, whose edits belong
    together; `neighbour_subjects` is the subject of each neighbour, None where it is not known, for schemas whose
    neighbours are about other subjects.
    """

    edits: tuple[Edit, ...]
    questions: tuple[Question, ...] = ()
    old_answers: tuple[str, ...] = ()
    case: str | None = None
    neighbour_subjects: tuple[str | None, ...] | None = None


def schema_of(record: Record) -> str:
    """The schema of a file, told from the fields of its first record; MegError if it is none of `SCHEMAS`."""
    fields = record.fields
    if "requested_rewrite" in fields:
        return "mquake" if isinstance(fields["requested_rewrite"], list | tuple) else "counterfact"
    if "src" in fields:
        return "zsre"
    if "target_new" in fields:
        return "mquake" if "questions" in fields else "knowedit"
    if "question" in fields and "answer" in fields:
        return "unke"
    if "prompt" in fields or "target" in fields:
        return "plain"
    found = ", ".join(f"`{name}`" for name in fields) or "none"
    record.fail(
        "the schema is unknown; give each record `prompt` and `target`, or the fields of CounterFact or MQuAKE "
        "(`requested_rewrite`), ZsRE (`src`, `alt`), KnowEdit (`prompt`, `target_new`) or UnKE (`question`, `answer`) "
        f"(found: {found[:200]})"
    )


# ---------------------------------------------------------------------------------------------------
# One function for each schema


def _plain(record: Record) -> Entry:
    edit = Edit(
        id=record.identifier("id"),
        prompt=record.text("prompt"),
        target=record.text("target", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation"),
        rephrases=record.texts("rephrases"),
        neighbours=record.texts("neighbours"),
        target_true=record.optional_text("target_true"),
    )
    return Entry((edit,))


def _counterfact(record: Record) -> Entry:
    edit = Edit(
        id=record.identifier("case_id"),
        prompt=_cloze(record, "requested_rewrite"),
        target=record.text("requested_rewrite.target_new.str", MAX_TARGET_CHARS),
        subject=record.text("requested_rewrite.subject"),
        relation=record.optional_text("requested_rewrite.relation_id"),
        rephrases=record.texts("x_paraphrase_clean") or record.texts("paraphrase_prompts"),
        neighbours=record.texts("neighborhood_prompts"),
        target_true=record.optional_text("requested_rewrite.target_true.str"),
    )
    beginnings = dict.fromkeys(record.texts("generation_prompts"))  # the files repeat some
    questions = tuple(Question("generation", text, (), edit.id) for text in beginnings)
    subjects = record.get("x_neighborhood_subjects")
    if not isinstance(subjects, list) or len(subjects) != len(edit.neighbours):
        subjects = [None] * len(edit.neighbours)
    known = tuple(subject if isinstance(subject, str) else None for subject in subjects)
    return Entry((edit,), questions, neighbour_subjects=known)


def _zsre(record: Record) -> Entry:
    rephrases = (record.optional_text("rephrase"), record.optional_text("rephrase_2"))
    unrelated, answer = record.optional_text("loc"), record.optional_text("loc_ans")
    old = _answers(record, "answers")
    edit = Edit(
        id=record.identifier("case_id"),
        prompt=record.text("src"),
        target=record.text("alt", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation_id"),
        rephrases=tuple(text for text in rephrases if text),
        neighbours=(unrelated,) if unrelated else (),
        target_true=old[0] if old else None,
    )
    known = (Question("locality", unrelated, (answer,), edit.id),) if unrelated and answer else ()
    asked = (*known, *_asked(record, "locality", edit.id), *_asked(record, "portability", edit.id))
    return Entry((edit,), asked, old)


def _knowedit(record: Record) -> Entry:
    old = _answers(record, _either(record, "ground_truth", "target_old"))
    edit = Edit(
        id=record.identifier("case_id"),
        prompt=record.text("prompt"),
        target=record.text("target_new", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation_id"),
        rephrases=_answers(record, _either(record, "rephrase_prompt", "rephrase")),
        target_true=old[0] if old else None,
    )
    locality = tuple(_asked(record, "locality", edit.id))
    # no other field of KnowEdit names queries whose answer must not change
    edit = replace(edit, neighbours=tuple(dict.fromkeys(question.query for question in locality)))
    return Entry((edit,), (*locality, *_asked(record, "portability", edit.id)), old)


def _mquake(record: Record) -> Entry:
    if "requested_rewrite" not in record.fields:
        return _mquake_edit(record)
    case = record.identifier("case_id")
    rewrites = _objects(record, "requested_rewrite")
    edits = tuple(_rewrite(rewrite, name, f"{case}-{i}") for i, (name, rewrite) in enumerate(rewrites, start=1))
    asked = record.texts("questions")
    answers = _accepted(record, "new_answer", "new_answer_alias") if asked else ()
    hops = tuple(
        Question(
            "single_hop", hop.text(f"{name}.question"), _accepted(hop, f"{name}.answer", f"{name}.answer_alias"), case
        )
        for name, hop in _objects(record, "new_single_hops")
    )
    return Entry(edits, (*(Question("multi_hop", text, answers, case) for text in asked), *hops), case=case)


def _rewrite(record: Record, name: str, edit_id: str) -> Edit:
    """An edit of an MQuAKE case; MQuAKE-Remastered writes `target_new_str` for `target_new.str`."""
    return Edit(
        id=edit_id,
        prompt=record.text(f"{name}.question"),
        target=record.text(_either(record, f"{name}.target_new.str", f"{name}.target_new_str"), MAX_TARGET_CHARS),
        subject=record.text(f"{name}.subject"),
        relation=record.optional_text(f"{name}.relation_id"),
        rephrases=(_cloze(record, name),),
        target_true=record.optional_text(_either(record, f"{name}.target_true.str", f"{name}.target_true_str")),
    )


def _mquake_edit(record: Record) -> Entry:
    """An edit of MQuAKE alone, without its case: `questions` are wordings of the edit."""
    if record.optional_text("target_new") is None:
        return Entry(())
    if not (wordings := record.texts("questions")):
        record.fail("the field `questions` is empty; give at least one question, the prompt of the edit")
    edit = Edit(
        id=record.identifier("case_id"),
        prompt=wordings[0],
        target=record.text("target_new", MAX_TARGET_CHARS),
        subject=record.optional_text("subject"),
        relation=record.optional_text("relation_id"),
        rephrases=wordings[1:],
        target_true=record.optional_text("target_true"),
    )
    return Entry((edit,))


def _unke(record: Record) -> Entry:
    rephrase = record.optional_text("para_question")
    edit = Edit(
        id=record.identifier("id"),
        prompt=record.text("question"),
        target=record.text("answer", MAX_TARGET_CHARS),
        rephrases=(rephrase,) if rephrase else (),
    )
    asked, answers = record.texts("sub_question"), record.texts("sub_answer")
    if len(asked) != len(answers):
        record.fail(
            f"the fields `sub_question` and `sub_answer` have {len(asked)} and {len(answers)} texts; "
            "give each question one answer"
        )
    pairs = zip(asked, answers, strict=True)
    return Entry((edit,), tuple(Question("sub_question", text, (answer,), edit.id) for text, answer in pairs))


SCHEMAS: dict[str, Callable[[Record], Entry]] = {
    "plain": _plain,
    "counterfact": _counterfact,
    "zsre": _zsre,
    "knowedit": _knowedit,
    "mquake": _mquake,
    "unke": _unke,
}


# ---------------------------------------------------------------------------------------------------
# Fields that several schemas have


def _cloze(record: Record, name: str) -> str:
    """The prompt of a rewrite request, its subject in the place of {}."""
    template, subject = record.text(f"{name}.prompt"), record.text(f"{name}.subject")
    if "{}" not in template:
        record.fail(f"the field `{name}.prompt` must hold {{}} where the subject goes")
    return template.replace("{}", subject)


def _either(record: Record, name: str, other: str) -> str:
    """The name of the two under which the record has something, the first if neither."""
    return other if record.get(name) is None and record.get(other) is not None else name


def _objects(record: Record, name: str) -> Iterator[tuple[str, Record]]:
    """The objects in a list, each with its name and a record that knows it by that name: `hops[0]`, `hops[1]`, ..."""
    values = record.get(name)
    if not isinstance(values, list | tuple | None):
        record.fail(f"the field `{name}` must be a list of objects, not {kind_of(values)}")
    for i, value in enumerate(values or ()):
        if not isinstance(value, Mapping):
            record.fail(f"the field `{name}[{i}]` must be an object, not {kind_of(value)}")
        yield f"{name}[{i}]", Record(record.where, None, {f"{name}[{i}]": value})


def _asked(record: Record, name: Literal["locality", "portability"], group: str) -> Iterator[Question]:
    """The questions of KnowEdit's `locality` or `portability`: `{aspect: [{prompt, ground_truth}, ...], ...}`.

    Those without an answer, of which the public files have some, cannot be judged and are passed over.
    """
    aspects = record.get(name)
    if not isinstance(aspects, Mapping | None):
        record.fail(f"the field `{name}` must be an object of lists, not {kind_of(aspects)}")
    for aspect, values in (aspects or {}).items():
        field = aspect.replace(".", " ")  # a dot in the name would lead Record into an object
        for key, item in _objects(Record(record.where, None, {field: values}), field):
            if answers := _answers(item, f"{key}.ground_truth"):
                yield Question(name, item.text(f"{key}.prompt"), answers, group)


def _accepted(record: Record, name: str, aliases: str) -> tuple[str, ...]:
    """A required answer and its other names."""
    return tuple(dict.fromkeys((record.text(name), *_answers(record, aliases))))


def _answers(record: Record, *names: str) -> tuple[str, ...]:
    """The different texts in the fields, each a text, a list of texts, or a list of lists of texts.

    Blank and null ones, which the public files hold among their aliases, are passed over.
    """
    texts: dict[str, None] = {}
    for name in names:
        field = name.rpartition(".")[2]
        for value in _flattened(record.get(name)):
            if text := Record(record.where, None, {field: value}).optional_text(field):
                texts[text] = None
    return tuple(texts)


def _flattened(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flattened(item)
    else:
        yield value
