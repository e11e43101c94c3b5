"""Schemas: one row of a data set read as edits and further questions.

A schema is a function from a `Row` to a `ParsedRow`; `schema_of` tells which one a file follows. Sources:
CounterFact (Meng et al. 2022, arXiv:2202.05262), ZsRE as in MEND (Mitchell et al. 2022, arXiv:2110.11309), KnowEdit
(Zhang et al. 2024, arXiv:2401.01286), MQuAKE (Zhong et al. 2023, arXiv:2305.14795), UnKEBench (Deng et al. 2025,
arXiv:2405.15349), and the files that their authors published.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from megedit.edits.columns import columns_of
from megedit.edits.rows import Row, kind_of
from megedit.edits.text import normalise_query

MAX_TARGET_CHARS = 2000

QuestionKind = Literal["multi_hop", "single_hop", "portability", "sub_question", "generation", "locality"]


@dataclass(frozen=True)
class Edit:
    """One piece of knowledge to write into the model: asked `prompt`, it is to answer `target`.

    What its owner knows: `wordings` are other ways to ask, `aliases` other names of the subject. For evaluation alone:
    `rephrases` are other wordings of the prompt, that nothing is made from, and `neighbours` neighbourhood prompts,
    queries whose answer must not change; `target_true` is the old answer, the one from before the edit.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    relation: str | None = None
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    target_true: str | None = None
    wordings: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def asked(self) -> tuple[str, ...]:
        """All that asks for the edit: the prompt, the wordings, and each of these with an alias for the subject."""
        return asked_texts(self.prompt, self.wordings, self.subject, self.aliases)

    def to_json(self) -> dict[str, object]:
        """The edit as a JSON object of the plain schema, without its empty fields."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in values if value not in (None, ())}

    @classmethod
    def from_json(cls, fields: Mapping[str, object], *, where: str = "the edit") -> "Edit":
        """The edit that `to_json` wrote; MegError, beginning with `where`, if a field is not valid."""
        row = Row(where, fields)
        row.answer("id")  # fails without one
        return _plain(row).edits[0]


def asked_texts(
    prompt: str, wordings: Iterable[str] = (), subject: str | None = None, aliases: Iterable[str] = ()
) -> tuple[str, ...]:
    """The texts of `Edit.asked`, each once."""
    texts, aliases = [prompt, *wordings], list(aliases)
    if subject and aliases:
        named = names(subject)
        parts = [named.split(text) for text in texts]
        texts += [alias.join(around) for alias in aliases for around in parts if len(around) > 1]
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normalise_query(text), text)
    return tuple(found.values())


def names(subject: str) -> re.Pattern[str]:
    """The pattern of a subject where it stands in a text as words of its own, in any case."""
    return re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)", re.IGNORECASE)


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
class ParsedRow:
    """The content of one row: its edits, none if it names no target, and the questions that belong to them.

    `old_answers` are all the answers from before the edit; `case` is the id of an MQuAKE case, whose edits belong
    together; `neighbour_subjects` is the subject of each neighbour, None where it is not known, for schemas whose
    neighbours are about other subjects.
    """

    edits: tuple[Edit, ...]
    questions: tuple[Question, ...] = ()
    old_answers: tuple[str, ...] = ()
    case: str | None = None
    neighbour_subjects: tuple[str | None, ...] | None = None


def schema_of(row: Row) -> str:
    """The schema of a file, told from the fields of its first row; MegError if it is none of `SCHEMAS`."""
    fields = row.fields
    if "requested_rewrite" in fields:
        return "mquake" if isinstance(fields["requested_rewrite"], list | tuple) else "counterfact"
    if "src" in fields:
        return "zsre"
    if "target_new" in fields and "questions" in fields:
        return "mquake"
    if "target_new" in fields and "prompt" in fields:
        return "knowedit"
    if "para_question" in fields or "sub_question" in fields:
        return "unke"
    if "prompt" in fields or "target" in fields or columns_of(list(fields)).keys() >= {"prompt", "target"}:
        return "plain"
    found = ", ".join(f"`{name}`" for name in fields) or "none"
    row.fail(
        "the schema is unknown; give each record `prompt` and `target`, or the fields of CounterFact or MQuAKE "
        "(`requested_rewrite`), ZsRE (`src`, `alt`), KnowEdit (`prompt`, `target_new`) or UnKE (`question`, `answer`) "
        f"(found: {found[:200]})"
    )


# ---------------------------------------------------------------------------------------------------
# One function for each schema


def _plain(row: Row) -> ParsedRow:
    edit = Edit(
        id=row.identifier("id", prompt := row.text("prompt")),
        prompt=prompt,
        target=row.answer("target", MAX_TARGET_CHARS),
        subject=row.optional_answer("subject"),
        relation=row.optional_answer("relation"),
        rephrases=row.texts("rephrases"),
        neighbours=row.texts("neighbours"),
        target_true=row.optional_answer("target_true"),
        wordings=_others(row, "wordings", prompt),
        aliases=_others(row, "aliases", row.optional_answer("subject") or ""),
    )
    if edit.aliases and not edit.subject:
        row.fail("the field `aliases` needs `subject`, the name that they stand for; add it, or remove the aliases")
    if edit.aliases and not names(edit.subject or "").search(prompt):
        row.fail(
            f"the subject {(edit.subject or '')[:60]!r} of the aliases does not stand in the prompt; write the subject "
            "as the prompt has it, or remove the aliases"
        )
    return ParsedRow((edit,))


def _counterfact(row: Row) -> ParsedRow:
    edit = Edit(
        id=row.identifier("case_id", prompt := _cloze(row, "requested_rewrite")),
        prompt=prompt,
        target=row.answer("requested_rewrite.target_new.str", MAX_TARGET_CHARS),
        subject=row.answer("requested_rewrite.subject"),
        relation=row.optional_answer("requested_rewrite.relation_id"),
        rephrases=row.texts("x_paraphrase_clean") or row.texts("paraphrase_prompts"),
        neighbours=row.texts("neighborhood_prompts"),
        target_true=row.optional_answer("requested_rewrite.target_true.str"),
    )
    beginnings = dict.fromkeys(row.texts("generation_prompts"))  # the files repeat some
    questions = tuple(Question("generation", text, (), edit.id) for text in beginnings)
    subjects = row.get("x_neighborhood_subjects")
    if not isinstance(subjects, list) or len(subjects) != len(edit.neighbours):
        subjects = [None] * len(edit.neighbours)
    known = tuple(subject if isinstance(subject, str) else None for subject in subjects)
    return ParsedRow((edit,), questions, neighbour_subjects=known)


def _zsre(row: Row) -> ParsedRow:
    rephrases = (row.optional_text("rephrase"), row.optional_text("rephrase_2"))
    unrelated, answer = row.optional_text("loc"), row.optional_answer("loc_ans")
    old = _answers(row, "answers")
    edit = Edit(
        id=row.identifier("case_id", prompt := row.text("src")),
        prompt=prompt,
        target=row.answer("alt", MAX_TARGET_CHARS),
        subject=row.optional_answer("subject"),
        relation=row.optional_answer("relation_id"),
        rephrases=tuple(text for text in rephrases if text),
        neighbours=(unrelated,) if unrelated else (),
        target_true=old[0] if old else None,
    )
    known = (Question("locality", unrelated, (answer,), edit.id),) if unrelated and answer else ()
    asked = (*known, *_asked(row, "locality", edit.id), *_asked(row, "portability", edit.id))
    return ParsedRow((edit,), asked, old)


def _knowedit(row: Row) -> ParsedRow:
    """A record of KnowEdit or EasyEdit, or a request of ROME, which has `{}` for the subject and `target_new.str`."""
    target = "target_new.str" if isinstance(row.get("target_new"), Mapping) else "target_new"
    old = _answers(row, "target_true.str", _either(row, "ground_truth", "target_old"))
    prompt, subject = row.text("prompt"), row.optional_answer("subject")
    prompt = prompt.replace("{}", subject) if subject else prompt
    edit = Edit(
        id=row.identifier("case_id", prompt),
        prompt=prompt,
        target=row.answer(target, MAX_TARGET_CHARS),
        subject=subject,
        relation=row.optional_answer("relation_id"),
        rephrases=_answers(row, _either(row, "rephrase_prompt", "rephrase")),
        target_true=old[0] if old else None,
    )
    locality = tuple(_asked(row, "locality", edit.id))
    # no other field of KnowEdit names queries whose answer must not change
    edit = replace(edit, neighbours=tuple(dict.fromkeys(question.query for question in locality)))
    return ParsedRow((edit,), (*locality, *_asked(row, "portability", edit.id)), old)


def _mquake(row: Row) -> ParsedRow:
    if "requested_rewrite" not in row.fields:
        return _mquake_edit(row)
    rewrites = [_rewrite(rewrite, name) for name, rewrite in _objects(row, "requested_rewrite")]
    asked = row.texts("questions")
    all_of_it = (text for edit in rewrites for text in (edit.prompt, edit.target))
    case = row.identifier("case_id", " ".join((*all_of_it, *asked)))
    edits = tuple(replace(edit, id=f"{case}-{i}") for i, edit in enumerate(rewrites, start=1))
    answers = _accepted(row, "new_answer", "new_answer_alias") if asked else ()
    hops = tuple(
        Question(
            "single_hop", hop.text(f"{name}.question"), _accepted(hop, f"{name}.answer", f"{name}.answer_alias"), case
        )
        for name, hop in _objects(row, "new_single_hops")
    )
    return ParsedRow(edits, (*(Question("multi_hop", text, answers, case) for text in asked), *hops), case=case)


def _rewrite(row: Row, name: str) -> Edit:
    """An edit of an MQuAKE case, without its id; MQuAKE-Remastered writes `target_new_str` for `target_new.str`."""
    return Edit(
        id="",
        prompt=row.text(f"{name}.question"),
        target=row.answer(_either(row, f"{name}.target_new.str", f"{name}.target_new_str"), MAX_TARGET_CHARS),
        subject=row.answer(f"{name}.subject"),
        relation=row.optional_answer(f"{name}.relation_id"),
        rephrases=(_cloze(row, name),),
        target_true=row.optional_answer(_either(row, f"{name}.target_true.str", f"{name}.target_true_str")),
    )


def _mquake_edit(row: Row) -> ParsedRow:
    """An edit of MQuAKE alone, without its case: `questions` are wordings of the edit."""
    if row.optional_answer("target_new") is None:
        return ParsedRow(())
    if not (wordings := row.texts("questions")):
        row.fail("the field `questions` is empty; give at least one question, the prompt of the edit")
    edit = Edit(
        id=row.identifier("case_id", wordings[0]),
        prompt=wordings[0],
        target=row.answer("target_new", MAX_TARGET_CHARS),
        subject=row.optional_answer("subject"),
        relation=row.optional_answer("relation_id"),
        rephrases=wordings[1:],
        target_true=row.optional_answer("target_true"),
    )
    return ParsedRow((edit,))


def _unke(row: Row) -> ParsedRow:
    rephrase = row.optional_text("para_question")
    edit = Edit(
        id=row.identifier("id", prompt := row.text("question")),
        prompt=prompt,
        target=row.answer("answer", MAX_TARGET_CHARS),
        rephrases=(rephrase,) if rephrase else (),
    )
    asked, answers = row.texts("sub_question"), row.texts("sub_answer")
    if len(asked) != len(answers):
        row.fail(
            f"the fields `sub_question` and `sub_answer` have {len(asked)} and {len(answers)} texts; "
            "give each question one answer"
        )
    pairs = zip(asked, answers, strict=True)
    return ParsedRow((edit,), tuple(Question("sub_question", text, (answer,), edit.id) for text, answer in pairs))


SCHEMAS: dict[str, Callable[[Row], ParsedRow]] = {
    "plain": _plain,
    "counterfact": _counterfact,
    "zsre": _zsre,
    "knowedit": _knowedit,
    "mquake": _mquake,
    "unke": _unke,
}


# ---------------------------------------------------------------------------------------------------
# Fields that several schemas have


def _cloze(row: Row, name: str) -> str:
    """The prompt of a rewrite request, its subject in the place of {}."""
    template, subject = row.text(f"{name}.prompt"), row.answer(f"{name}.subject")
    if "{}" not in template:
        row.fail(f"the field `{name}.prompt` must hold {{}} where the subject goes")
    return template.replace("{}", subject)


def _others(row: Row, name: str, first: str) -> tuple[str, ...]:
    """The texts of a list, without blank ones, repetitions and what counts as the same as `first`."""
    value = row.get(name)
    if isinstance(value, list | tuple):
        given = [item for item in value if not (item is None or (isinstance(item, str) and not item.strip()))]
        row = Row(row.where, {name: given})
    found = {normalise_query(text): text for text in reversed(row.texts(name))}
    found.pop(normalise_query(first), None)
    return tuple(reversed(found.values()))


def _either(row: Row, name: str, other: str) -> str:
    """The name of the two under which the record has something, the first if neither."""
    return other if row.get(name) is None and row.get(other) is not None else name


def _objects(row: Row, name: str) -> Iterator[tuple[str, Row]]:
    """The objects in a list, each with its name and a record that knows it by that name: `hops[0]`, `hops[1]`, ..."""
    values = row.get(name)
    if not isinstance(values, list | tuple | None):
        row.fail(f"the field `{name}` must be a list of objects, not {kind_of(values)}")
    for i, value in enumerate(values or ()):
        if not isinstance(value, Mapping):
            row.fail(f"the field `{name}[{i}]` must be an object, not {kind_of(value)}")
        yield f"{name}[{i}]", Row(row.where, {f"{name}[{i}]": value})


def _asked(row: Row, name: Literal["locality", "portability"], group: str) -> Iterator[Question]:
    """The questions of KnowEdit's `locality` or `portability`: `{aspect: [{prompt, ground_truth}, ...], ...}`.

    Those without an answer, of which the public files have some, cannot be judged and are passed over.
    """
    aspects = row.get(name)
    if not isinstance(aspects, Mapping | None):
        row.fail(f"the field `{name}` must be an object of lists, not {kind_of(aspects)}")
    for aspect, values in (aspects or {}).items():
        field = aspect.replace(".", " ")  # a dot in the name would lead Row into an object
        for key, item in _objects(Row(row.where, {field: values}), field):
            if answers := _answers(item, f"{key}.ground_truth"):
                yield Question(name, item.text(f"{key}.prompt"), answers, group)


def _accepted(row: Row, name: str, aliases: str) -> tuple[str, ...]:
    """A required answer and its other names."""
    return tuple(dict.fromkeys((row.answer(name), *_answers(row, aliases))))


def _answers(row: Row, *names: str) -> tuple[str, ...]:
    """The different texts in the fields, each a text, a list of texts, or a list of lists of texts.

    Blank and null ones, which the public files hold among their aliases, are passed over.
    """
    texts: dict[str, None] = {}
    for name in names:
        field = name.rpartition(".")[2]
        for value in _flattened(row.get(name)):
            if text := Row(row.where, {field: value}).optional_answer(field):
                texts[text] = None
    return tuple(texts)


def _flattened(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flattened(item)
    else:
        yield value
