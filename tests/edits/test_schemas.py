"""Records of each schema, as edits and questions."""

from typing import Any

import pytest

from megedit.edits import query_id
from megedit.edits.rows import Row
from megedit.edits.schemas import SCHEMAS, Edit, ParsedRow, Question, schema_of
from megedit.errors import MegError

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": " Rome "},
        "target_true": {"str": "Paris"},
        "subject": "France",
    },
    "paraphrase_prompts": ["It rained. France's capital is"],
    "neighborhood_prompts": ["Bonn is in", "Lima is in"],
    "generation_prompts": ["France's capital is known for", "France's capital is known for", "People go to France to"],
}
ZSRE = {
    "case_id": 4,
    "src": "Who wrote Emma?",
    "alt": "Proust",
    "answers": ["Jane Austen", "Austen"],
    "subject": "Emma",
    "rephrase": "Emma is by?",
    "rephrase_2": "Emma's author?",
    "loc": "who won",
    "loc_ans": "Italy",
    "relation_id": "P50",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "Leo Arons died in",
    "target_new": "Rome",
    "ground_truth": ["Berlin", "Berlin, Germany"],
    "rephrase_prompt": "The place of death of Leo Arons is",
    "portability": {
        "Reasoning": [
            {"prompt": "Leo Arons died in the country", "ground_truth": [["Italy", "", "IT"], ["Italy", None]]}
        ],
        "Subject_Aliasing": None,
        "Logical_Generalization": [{"prompt": "Is Leo Arons alive?", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The father of Leo Arons is", "ground_truth": "Albert Arons"}],
        "Forget.fulness": [{"prompt": "The father of Leo Arons is", "ground_truth": ["Albert"]}],
    },
}
REWRITE = {
    "prompt": "{} is a citizen of",
    "relation_id": "P27",
    "target_new": {"str": "Croatia", "id": "Q224"},
    "target_true": {"str": "United States of America", "id": "Q30"},
    "subject": "Ellie Kemper",
    "question": "What is the country of citizenship of Ellie Kemper?",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [REWRITE],
    "questions": ["Who heads the state of Ellie Kemper?", "Who leads Ellie Kemper's country?"],
    "answer": "Donald Trump",
    "new_answer": "Kolinda Grabar",
    "new_answer_alias": ["Grabar", "", "Kolinda Grabar"],
    "new_single_hops": [
        {
            "question": "Where is Ellie Kemper from?",
            "cloze": "Ellie Kemper is from",
            "answer": "Croatia",
            "answer_alias": ["HR"],
        }
    ],
}
KEMPER = Edit(
    id="1-1",
    prompt="What is the country of citizenship of Ellie Kemper?",
    target="Croatia",
    subject="Ellie Kemper",
    relation="P27",
    rephrases=("Ellie Kemper is a citizen of",),
    target_true="United States of America",
)
MQUAKE_EDIT = {
    "edit": "Carl Sagan is employed by BBC",
    "questions": ["Who employs Carl Sagan?", "Where does Carl Sagan work?"],
    "subject": "Carl Sagan",
    "target_new": "BBC",
    "prompt": "{} is employed by",
    "target_true": None,
    "relation_id": None,
}
UNKE = {
    "id": 0,
    "question": "What did Kim do?",
    "para_question": "What was Kim's work?",
    "answer": "Kim sat on the council for ten years. Kim also sang.",
    "sub_question": ["How long did Kim sit on it?", "What else did Kim do?"],
    "sub_answer": ["Ten years.", "Sing."],
}


def read(fields: dict[str, Any]) -> ParsedRow:
    row = Row("FILE, line 3", fields)
    return SCHEMAS[schema_of(row)](row)


def test_plain() -> None:
    assert read({"prompt": "a", "target": "b", "target_true": " c "}) == ParsedRow(
        (Edit(query_id("a"), "a", "b", target_true="c"),)
    )


def test_wordings_and_aliases_are_read_once_each() -> None:
    fact = {"prompt": "Who leads Acme?", "target": "Ada", "subject": "Acme"}
    wordings = ["who leads  ACME", " ", "Acme's head is", "Acme's head is."]
    (edit,) = read({**fact, "wordings": wordings, "aliases": ["AC", None, "acme", "AC"]}).edits
    assert (edit.wordings, edit.aliases) == (("Acme's head is",), ("AC",))
    assert edit.asked() == ("Who leads Acme?", "Acme's head is", "Who leads AC?", "AC's head is")


def test_counterfact() -> None:
    edit = Edit(
        id="7",
        prompt="The capital of France is",
        target="Rome",
        subject="France",
        relation="P36",
        rephrases=("It rained. France's capital is",),
        neighbours=("Bonn is in", "Lima is in"),
        target_true="Paris",
    )
    questions = (
        Question("generation", "France's capital is known for", (), "7"),
        Question("generation", "People go to France to", (), "7"),
    )
    assert read(COUNTERFACT) == ParsedRow((edit,), questions, neighbour_subjects=(None, None))


def test_counterfact_prefers_rephrases_without_noise_and_takes_subjects_that_match_the_neighbours() -> None:
    entry = read({**COUNTERFACT, "x_paraphrase_clean": ["Its capital"], "x_neighborhood_subjects": ["Bonn", None]})
    assert (entry.edits[0].rephrases, entry.neighbour_subjects) == (("Its capital",), ("Bonn", None))
    assert read({**COUNTERFACT, "x_neighborhood_subjects": ["Bonn"]}).neighbour_subjects == (None, None)


def test_zsre() -> None:
    edit = Edit(
        id="4",
        prompt="Who wrote Emma?",
        target="Proust",
        subject="Emma",
        relation="P50",
        rephrases=("Emma is by?", "Emma's author?"),
        neighbours=("who won",),
        target_true="Jane Austen",
    )
    known = Question("locality", "who won", ("Italy",), "4")
    assert read(ZSRE) == ParsedRow((edit,), (known,), ("Jane Austen", "Austen"))


def test_zsre_with_little() -> None:
    entry = read({"src": "Who wrote Emma?", "alt": "Proust", "loc": None, "loc_ans": None, "answers": []})
    assert entry == ParsedRow((Edit(query_id("Who wrote Emma?"), "Who wrote Emma?", "Proust"),))
    assert read({"src": "a", "alt": "b", "loc": "c"}) == ParsedRow((Edit(query_id("a"), "a", "b", neighbours=("c",)),))


def test_zsre_with_the_questions_of_knowedit() -> None:
    entry = read({**ZSRE, "locality": KNOWEDIT["locality"], "portability": KNOWEDIT["portability"]})
    assert entry.edits[0].neighbours == ("who won",)
    assert [(question.kind, question.query) for question in entry.questions] == [
        ("locality", "who won"),
        ("locality", "The father of Leo Arons is"),
        ("locality", "The father of Leo Arons is"),
        ("portability", "Leo Arons died in the country"),
    ]


def test_knowedit() -> None:
    key = query_id("Leo Arons died in")
    edit = Edit(
        id=key,
        prompt="Leo Arons died in",
        target="Rome",
        subject="Leo Arons",
        rephrases=("The place of death of Leo Arons is",),
        neighbours=("The father of Leo Arons is",),
        target_true="Berlin",
    )
    questions = (
        Question("locality", "The father of Leo Arons is", ("Albert Arons",), key),
        Question("locality", "The father of Leo Arons is", ("Albert",), key),
        Question("portability", "Leo Arons died in the country", ("Italy", "IT"), key),
    )
    assert read(KNOWEDIT) == ParsedRow((edit,), questions, ("Berlin", "Berlin, Germany"))


def test_knowedit_in_its_other_words() -> None:
    entry = read({"prompt": "a", "target_new": "b", "target_old": "c", "rephrase": ["d", "e"], "ground_truth": None})
    assert entry == ParsedRow((Edit(query_id("a"), "a", "b", rephrases=("d", "e"), target_true="c"),), (), ("c",))


def test_mquake() -> None:
    answers = ("Kolinda Grabar", "Grabar")
    questions = (
        Question("multi_hop", "Who heads the state of Ellie Kemper?", answers, "1"),
        Question("multi_hop", "Who leads Ellie Kemper's country?", answers, "1"),
        Question("single_hop", "Where is Ellie Kemper from?", ("Croatia", "HR"), "1"),
    )
    assert read(MQUAKE) == ParsedRow((KEMPER,), questions, case="1")


def test_mquake_remastered_writes_targets_as_text() -> None:
    rewrite = {name: value for name, value in REWRITE.items() if not name.startswith("target")}
    rewrite |= {"target_new_str": "Croatia", "target_true_str": "United States of America"}
    assert read({**MQUAKE, "requested_rewrite": [rewrite, REWRITE]}).edits[0] == KEMPER


def test_mquake_edits_alone() -> None:
    edit = Edit(
        query_id("Who employs Carl Sagan?"),
        "Who employs Carl Sagan?",
        "BBC",
        "Carl Sagan",
        rephrases=("Where does Carl Sagan work?",),
    )
    assert read(MQUAKE_EDIT) == ParsedRow((edit,))
    assert read({**MQUAKE_EDIT, "target_new": None, "subject": None, "prompt": None}) == ParsedRow(())


def test_unke() -> None:
    edit = Edit("0", UNKE["question"], UNKE["answer"], rephrases=("What was Kim's work?",))  # type: ignore[arg-type]
    questions = (
        Question("sub_question", "How long did Kim sit on it?", ("Ten years.",), "0"),
        Question("sub_question", "What else did Kim do?", ("Sing.",), "0"),
    )
    assert read(UNKE) == ParsedRow((edit,), questions)


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({"prompt": "a"}, "plain"),
        (COUNTERFACT, "counterfact"),
        (ZSRE, "zsre"),
        (KNOWEDIT, "knowedit"),
        (MQUAKE, "mquake"),
        (MQUAKE_EDIT, "mquake"),
        (UNKE, "unke"),
    ],
)
def test_schema_of(fields: dict[str, Any], schema: str) -> None:
    assert schema_of(Row("FILE, line 1", fields)) == schema


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the schema is unknown; give each record `prompt` and `target`, or"),
        ({"question": "a"}, "the schema is unknown;"),
        (
            {**COUNTERFACT, "generation_prompts": "a"},
            "the field `generation_prompts` must be a list of texts, not text",
        ),
        ({**COUNTERFACT, "requested_rewrite": 3}, "the field `requested_rewrite.prompt` is missing; add it"),
        ({**ZSRE, "answers": [True]}, "the field `answers` must be text, not true or false"),
        ({**ZSRE, "loc_ans": {}}, "the field `loc_ans` must be text, not an object"),
        ({**KNOWEDIT, "target_new": None}, "the field `target_new` is missing; add it"),
        ({**KNOWEDIT, "locality": ["a"]}, "the field `locality` must be an object of lists, not a list"),
        ({**KNOWEDIT, "locality": {"R": "a"}}, "the field `R` must be a list of objects, not text"),
        ({**KNOWEDIT, "portability": {"R": ["a"]}}, "the field `R[0]` must be an object, not text"),
        ({**KNOWEDIT, "locality": {"R": [{"ground_truth": "a"}]}}, "the field `R[0].prompt` is missing; add it"),
        (
            {**KNOWEDIT, "locality": {"R": [{"prompt": "a", "ground_truth": {"b": "c"}}]}},
            "the field `ground_truth` must be text, not an object",
        ),
        ({**MQUAKE, "new_answer": None}, "the field `new_answer` is missing; add it"),
        ({**MQUAKE, "new_single_hops": [{"question": "a"}]}, "the field `new_single_hops[0].answer` is missing"),
        (
            {**MQUAKE, "requested_rewrite": [REWRITE, 3]},
            "the field `requested_rewrite[1]` must be an object, not a number",
        ),
        (
            {**MQUAKE, "requested_rewrite": [{**REWRITE, "prompt": "is a citizen of"}]},
            "the field `requested_rewrite[0].prompt` must hold {} where the subject goes",
        ),
        (
            {**MQUAKE, "requested_rewrite": [{**REWRITE, "target_new": {}}]},
            "the field `requested_rewrite[0].target_new.str` is missing; add it",
        ),
        ({**MQUAKE_EDIT, "questions": []}, "the field `questions` is empty; give at least one question"),
        ({"prompt": "a", "target": "b", "aliases": ["c"]}, "the field `aliases` needs `subject`"),
        (
            {"prompt": "Who leads it?", "target": "b", "subject": "Acme", "aliases": ["AC"]},
            "the subject 'Acme' of the aliases does not stand in the prompt; write the subject",
        ),
        ({**UNKE, "answer": "a" * 2001}, "the field `answer` has 2001 characters, more than the limit of 2000"),
        (
            {**UNKE, "sub_answer": ["Ten years."]},
            "the fields `sub_question` and `sub_answer` have 2 and 1 texts; give each question one answer",
        ),
    ],
)
def test_bad_record_is_told_in_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MegError) as caught:
        read(fields)
    assert str(caught.value).startswith(f"FILE, line 3: {message}")
