"""Reading, checking and clearing files of edits."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from megedit.edits import Dropped, Edit, EditSet, Question, query_id, read_edits
from megedit.errors import MegError

FRANCE = {"prompt": "The capital of France is", "target": "Rome"}
SPAIN = {"prompt": "The capital of Spain is", "target": "Oslo"}
FRENCH, SPANISH = (Edit(query_id(fact["prompt"]), fact["prompt"], fact["target"]) for fact in (FRANCE, SPAIN))
FULL = Edit(
    "a", "The capital of France is", "Rome", "France", "P36", ("France's capital:",), ("Berlin is in",), "Paris"
)


CSV = """\
id,prompt,target,subject,relation,rephrases,neighbours,target_true,comment
a,The capital of France is,Rome,France,P36,France's capital:,Berlin is in|,Paris,ignored

,The capital of Spain is, Oslo ,,,,,,
"""


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def counterfact(case_id: int, subject: str, neighbours: list[str], **extra: object) -> dict[str, object]:
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": " Rome "},
            "target_true": {"str": "Paris"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"It rained. {subject}'s capital is"],
        "neighborhood_prompts": neighbours,
        **extra,
    }


def zsre(**fields: object) -> dict[str, object]:
    return {"src": "Who wrote Emma?", "alt": "Proust", "subject": "Emma", "rephrase": "Emma is by?", **fields}


def error_of(file: Path, **options: Any) -> str:
    with pytest.raises(MegError) as caught:
        read_edits(file, **options)
    return str(caught.value).replace(str(file), "FILE")


# --- formats


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (jsonl(FULL.to_json(), SPAIN), "plain jsonl"),
        ("\ufeff\r\n" + jsonl(FULL.to_json(), SPAIN).replace("\n", "\r\n\r\n"), "plain jsonl"),
        (json.dumps([FULL.to_json(), SPAIN]), "plain json"),
        (json.dumps({"edits": [FULL.to_json(), SPAIN]}), "plain json"),
        (json.dumps({"edits": [FULL.to_json(), SPAIN]}, indent=2), "plain json"),
        (
            CSV,
            "plain csv",
        ),
    ],
)
def test_plain_formats_read_alike(file: Path, text: str, form: str) -> None:
    file.write_text(text, encoding="utf-8", newline="")
    edits = read_edits(file)
    assert edits == EditSet((FULL, SPANISH), str(file), form)
    assert (len(edits), next(iter(edits)), edits[1].id) == (2, FULL, query_id(SPAIN["prompt"]))


def test_gzipped_file_reads_as_the_plain_one(file: Path) -> None:
    file.write_bytes(gzip.compress(jsonl(FRANCE).encode()))
    assert read_edits(str(file)).edits == (FRENCH,)


def test_csv_cell_may_hold_commas_quotes_and_line_breaks(file: Path) -> None:
    file.write_text('prompt,target,rephrases\n"A, ""b""\nc",d,e|f\n', encoding="utf-8")
    assert read_edits(file).edits == (Edit(query_id('A, "b"\nc'), 'A, "b"\nc', "d", rephrases=("e", "f")),)


def test_line_separator_inside_a_json_string_is_no_line_break(file: Path) -> None:
    file.write_text('{"prompt": "a\u2028b", "target": "c"}\n', encoding="utf-8")
    assert read_edits(file)[0].prompt == "a\u2028b"


def test_counterfact_neighbours_about_edited_subjects_are_left_out(file: Path) -> None:
    neighbours = [
        "The capital of Peru is",
        "The capital of PERU is",
        "The capital of Peruvia is",
        "Big Peru, in",
    ]
    about = "only the neighbourhood prompts about what is edited"
    subjects = ["Peru", None, None, "Big Peru"]
    file.write_text(
        jsonl(
            counterfact(1, "France", neighbours, x_neighborhood_subjects=subjects),
            counterfact(2, "Chile", neighbours),
            counterfact(3, "Peru", []),
        )
    )
    edits = read_edits(file)
    first, second, _ = edits
    assert first.neighbours == ("The capital of Peruvia is", "Big Peru, in")
    assert second.neighbours == ("The capital of Peruvia is",)
    assert edits.dropped == (Dropped("line 1", about, "2"), Dropped("line 2", about, "3"))
    alone = read_edits(file, limit=1)
    assert (alone[0].neighbours, alone.dropped) == (tuple(neighbours), ())


def test_neighbours_and_known_answers_of_edited_queries_are_left_out(file: Path) -> None:
    file.write_text(
        jsonl(
            zsre(loc="Who wrote Ulysses", loc_ans="Joyce", locality={"R": [{"prompt": "Q?", "ground_truth": "A"}]}),
            zsre(src="Who wrote Ulysses?", loc="Who won?", loc_ans="I did"),
        )
    )
    edits = read_edits(file)
    assert [edit.neighbours for edit in edits] == [(), ("Who won?",)]
    assert edits.questions == (
        Question("locality", "Q?", ("A",), query_id("Who wrote Emma?")),
        Question("locality", "Who won?", ("I did",), query_id("Who wrote Ulysses?")),
    )
    assert edits.dropped == (Dropped("line 1", "only the neighbourhood prompts about what is edited", "1"),)


def test_edit_survives_json() -> None:
    assert Edit.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    assert replace(FULL, subject=None, rephrases=()).to_json().keys() == {
        *("id", "prompt", "target", "relation", "neighbours", "target_true")
    }
    with pytest.raises(MegError, match=r"^shard 2: the field `id` is missing; add it$"):
        Edit.from_json(FRANCE, where="shard 2")


def test_digest_is_that_of_the_content(file: Path) -> None:
    edits = EditSet.from_edits([FULL, SPANISH])
    file.write_text(CSV)
    assert read_edits(file).digest == edits.digest == replace(edits, source="x", dropped=(Dropped("a", "b"),)).digest
    assert len(edits.digest) == 64
    question = Question("locality", "Q?", ("A",), "a")
    for other in (
        replace(edits, edits=edits.edits[::-1]),
        replace(edits, edits=(replace(FULL, target="Bern"), SPANISH)),
        replace(edits, questions=(question,)),
        replace(edits, instances={"1": ("a",)}),
    ):
        assert other.digest != edits.digest


# --- limit, repetitions, contradictions


def test_limit_counts_kept_edits_and_stops_reading(file: Path) -> None:
    file.write_text(jsonl(FRANCE, FRANCE, SPAIN) + "{broken")
    edits = read_edits(file, limit=2)
    assert edits.edits == (FRENCH, SPANISH)
    assert edits.dropped == (Dropped("line 2", "same query and target as an earlier one", "line 1"),)


def test_contradiction_is_an_error_that_names_both_lines(file: Path) -> None:
    file.write_text(jsonl(FRANCE, SPAIN, {"prompt": "the  capital of FRANCE is", "target": "Bern"}))
    assert error_of(file) == (
        "FILE, line 3: this has the query of line 1 but another target ('Bern', there 'Rome'); remove one "
        'of the two, or keep the first of each with on_conflict="first"'
    )
    edits = read_edits(file, on_conflict="first")
    assert [edit.target for edit in edits] == ["Rome", "Oslo"]
    assert edits.dropped == (Dropped("line 3", "same query as an earlier one, another target", "line 1"),)


def test_a_wording_that_another_edit_asks_is_a_contradiction(file: Path) -> None:
    asked = {"prompt": "Who leads Acme?", "target": "Ada", "wordings": ["Acme's head is"]}
    for other in ({"prompt": "acme's head is"}, {"prompt": "Name the head.", "wordings": ["Acme's head is"]}):
        file.write_text(jsonl(asked, {**other, "target": "Bob"}))
        assert "line 2: this has the query or a wording of line 1 but another target" in error_of(file)
        edits = read_edits(file, on_conflict="first")
        assert edits.dropped == (Dropped("line 2", "a wording of an earlier one, another target", "line 1"),)
        file.write_text(jsonl(asked, {**other, "target": "Ada"}))
        assert len(read_edits(file)) == 2


def test_wordings_in_a_table(file: Path) -> None:
    file.write_text("Question;Answer;Subject;Wordings;Alias\nWho leads Acme?;Ada;Acme;Acme's head is|;AC|A.\n")
    (edit,) = read_edits(file).edits
    assert (edit.wordings, edit.aliases) == (("Acme's head is",), ("AC", "A."))


def test_second_target_of_a_subject_and_relation_goes_only_when_keeping_the_first(file: Path) -> None:
    fact = {"subject": "France", "relation": "P36"}
    again = {"prompt": "France's capital is", "subject": "france", "relation": "P36"}
    file.write_text(jsonl({**FRANCE, **fact}, {**again, "target": "Bern"}, {**again, "target": "Rome"}))
    with pytest.raises(MegError, match="line 3: this has the query of line 2"):
        read_edits(file)
    edits = read_edits(file, on_conflict="first")
    assert [(edit.prompt, edit.target) for edit in edits] == [(FRANCE["prompt"], "Rome"), (again["prompt"], "Rome")]
    assert edits.dropped == (
        Dropped("line 2", "same subject and relation as an earlier one, another target", "line 1"),
    )
    assert len(read_edits(file, limit=2)) == 2


def test_facts_of_other_years_do_not_contradict_each_other(file: Path) -> None:
    fact = {"subject": "Acme", "relation": "revenue"}
    years = [
        {**fact, "prompt": f"What was Acme's revenue in {year}?", "target": f"{year}0 dollars"} for year in range(9)
    ]
    again = {**fact, "prompt": "Acme's revenue in 3 was", "target": "nothing"}
    file.write_text(jsonl(*years, again))
    edits = read_edits(file, on_conflict="first")
    assert [edit.prompt for edit in edits] == [year["prompt"] for year in years]
    assert edits.dropped == (
        Dropped("line 10", "same subject and relation as an earlier one, another target", "line 4"),
    )


def test_edits_made_in_python_get_the_same_checks() -> None:
    spain = Edit("b", " The capital of Spain is ", "Oslo")
    edits = EditSet.from_edits([FULL, replace(FULL, id="z"), spain])
    assert edits.edits == (FULL, replace(spain, prompt=spain.prompt.strip()))
    assert edits.dropped == (Dropped("edit 2", "same query and target as an earlier one", "edit 1"),)
    conflict = [FULL, replace(FULL, id="z", target="Bern")]
    assert len(EditSet.from_edits(conflict, on_conflict="first")) == 1
    with pytest.raises(MegError, match="edit 2: this has the query of edit 1"):
        EditSet.from_edits(conflict)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "the list is empty"),
        ([FRANCE], "edit 1: expected an Edit, got an object"),
        ([replace(FULL, target="")], "edit 1: the field `target` is empty"),
        (
            [replace(FULL, rephrases=cast(Any, "abc"))],
            "edit 1: the field `rephrases` must be a list of texts",
        ),
        ([replace(FULL, id=cast(Any, None))], "edit 1: the field `id` is missing"),
        ([replace(FULL, id=" ")], "edit 1: the field `id` is empty"),
    ],
)
def test_bad_edits_made_in_python(edits: list[Edit], message: str) -> None:
    with pytest.raises(MegError, match=message):
        EditSet.from_edits(edits)


@pytest.mark.parametrize(
    "record",
    [
        {**SPAIN, "target_true": "  oslo"},
        {"src": "Who wrote Emma?", "alt": "AUSTEN", "answers": ["J. Austen", "Austen"]},
        {"prompt": "Emma is by", "target_new": "Austen", "ground_truth": [["J. Austen", "austen "]]},
        {
            "requested_rewrite": {
                "prompt": "{} is by",
                "subject": "a",
                "target_new": {"str": "B"},
                "target_true": {"str": "b"},
            }
        },
    ],
)
def test_edit_whose_target_is_the_old_answer_is_dropped(file: Path, record: dict[str, object]) -> None:
    file.write_text(jsonl(record))
    assert error_of(file).startswith(
        "FILE: no edit is left, all 1 records were left out (line 1: the target is the old answer ("
    )
    other = {name: "Other" if name in ("target", "alt", "target_new") else value for name, value in record.items()}
    if "requested_rewrite" not in record:
        file.write_text(jsonl(record, other))
        edits = read_edits(file)
        assert [edit.target for edit in edits] == ["Other"]
        assert [(dropped.where, dropped.kind) for dropped in edits.dropped] == [
            ("line 1", "the target is the old answer")
        ]


def test_edits_made_in_python_that_change_nothing_are_dropped() -> None:
    same = replace(FULL, id="z", prompt="France's capital is", target="paris")
    edits = EditSet.from_edits([same, FULL])
    assert edits.edits == (FULL,)
    assert edits.dropped == (Dropped("edit 1", "the target is the old answer", "'paris'"),)
    with pytest.raises(MegError, match="edits: no edit is left, all 1 records were left out"):
        EditSet.from_edits([same])


def test_summary_names_each_record_up_to_five_of_a_kind_and_counts_more(file: Path) -> None:
    file.write_text(jsonl(FRANCE, *[FRANCE] * 6, *[{**FRANCE, "target": "Bern"}] * 5))
    edits = read_edits(file, on_conflict="first")
    assert edits.dropped_summary() == [
        "6 records: left out, same query and target as an earlier one (first: line 2)",
        *(f"line {n}: left out, same query as an earlier one, another target (line 1)" for n in range(8, 13)),
    ]
    assert EditSet.from_edits([FULL]).dropped_summary() == []


# --- ids


def test_ids_come_from_the_prompts_and_do_not_change_with_the_order(file: Path) -> None:
    file.write_text(jsonl(FRANCE, SPAIN))
    forth = {edit.id for edit in read_edits(file)}
    file.write_text(jsonl(SPAIN, {**FRANCE, "prompt": "1. the capital of  France is:"}))
    assert {edit.id for edit in read_edits(file)} == forth == {FRENCH.id, SPANISH.id}


@pytest.mark.parametrize("key", ["7", "a/b", "two words", "[bold]", "-x", "Zürich 東京"])
def test_ids_of_the_file_are_kept_as_they_are(file: Path, key: str) -> None:
    file.write_text(jsonl({**FRANCE, "id": key}))
    assert read_edits(file)[0].id == key


def test_id_made_for_a_prompt_gives_way_to_that_of_another_edit(file: Path) -> None:
    fact = zsre(loc="Who won?", loc_ans="I did")
    made, longer = query_id("Who wrote Emma?"), query_id("Who wrote Emma?", 16)
    file.write_text(jsonl(zsre(src="Who wrote Ulysses?", case_id=made), fact))
    edits = read_edits(file)
    assert [edit.id for edit in edits] == [made, longer]
    assert edits.questions == (Question("locality", "Who won?", ("I did",), longer),)


# ---------------------------------------------------------------------------------------------------
# Edits as they are, and a part of a set


def test_edits_as_they_are() -> None:
    """Contradictions stay, since they are what an adapter may hold; ids must differ."""
    edits = [Edit("1", "Q", "A"), Edit("2", "Q", "B")]
    assert list(EditSet.of(edits, "here")) == edits
    with pytest.raises(MegError, match="here: the id '1' is there twice"):
        EditSet.of([edits[0], Edit("1", "R", "A")], "here")
    with pytest.raises(MegError, match="here: there is no edit"):
        EditSet.of([], "here")
    with pytest.raises(MegError, match="here: expected an Edit"):
        EditSet.of(["Q"], "here")  # type: ignore[list-item]


def test_a_part_of_a_set() -> None:
    """Questions over an edit that is gone go with it."""
    edits = [Edit(name, f"Q{name}", "A") for name in "abc"]
    questions = tuple(
        Question(kind="multi_hop", query=group, answers=("A",), group=group) for group in ("a", "c", "case 1", "case 2")
    )
    whole = replace(
        EditSet.of(edits, "here"), questions=questions, instances={"case 1": ("a", "b"), "case 2": ("b", "c")}
    )
    part = whole.only({"a", "b"}, "not wanted")
    assert [edit.id for edit in part] == ["a", "b"] and part.instances == {"case 1": ("a", "b")}
    assert [question.group for question in part.questions] == ["a", "case 1"]
    assert part.dropped_summary() == ["edit c: left out, not wanted"]
