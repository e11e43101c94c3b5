"""Pseudo-knowledge: loading, keeping it apart from the edits, splitting."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from megedit.edits.edit_set import Edit
from megedit.errors import MegError
from megedit.pseudo.knowledge import (
    OWN_FACTS,
    OWN_WORDINGS,
    OtherQuestions,
    PseudoFact,
    PseudoKnowledge,
    load_pseudo_knowledge,
)

ROME = PseudoFact("Rome is in", ("Rome lies in",), ("Oslo is in", "Bonn is in"), "Rome", "P17")
EMMA = PseudoFact("Who wrote Emma?", ("Emma is by?",), (), "Emma", "P50")
JOYCE = PseudoFact("Who wrote Ulysses, after Emma?", ("Ulysses is by?",), (), "Ulysses", "P50")
SMALL = PseudoKnowledge((ROME, EMMA, JOYCE), ("It rained.",), ("who won the cup", "how old is emma stone"))


def many(count: int) -> PseudoKnowledge:
    facts = (
        PseudoFact(f"prompt {i} of {i // 2}", ("r",), (f"shared {i % 7}", f"own {i}"), f"Subject {i // 2}")
        for i in range(count)
    )
    return PseudoKnowledge(tuple(facts), tuple(map("noise {}".format, range(50))), tuple(map("q {}".format, range(30))))


# --- other questions about a subject


def test_other_questions_are_those_of_other_relations() -> None:
    born = PseudoFact("Ann was born in", ("Where was Ann born?",), (), "Ann", "birthplace")
    lives = PseudoFact("Bo lives in", ("Bo, of",), (), "Bo", "residence")
    works = PseudoFact("Cy works in", ("Cy, of",), (), "Cy", "workplace")  # one wording is that of `lives`
    nameless = PseudoFact("It rains in", ("Rain falls in",), (), None, "rain")
    questions, rng = OtherQuestions((born, lives, works, nameless)), random.Random(0)
    about = {fact.subject: {questions.about(fact, rng) for _ in range(50)} for fact in (born, lives, works)}
    assert about["Ann"] == {"Ann lives in", "Ann, of", "Ann works in"}
    assert about["Bo"] == {"Bo was born in", "Where was Bo born?"}
    assert about["Cy"] == {"Cy was born in", "Where was Cy born?"}
    assert questions.about(nameless, rng) is None
    assert OtherQuestions((born,)).about(born, rng) is None


# --- loading


def test_own_facts_come_with_the_shipped_noise_and_questions(tmp_path: Path) -> None:
    file, shipped = tmp_path / "facts.jsonl", load_pseudo_knowledge()
    bare = {"prompt": "Bonn lies where?", "rephrases": ["Where is Bonn?"]}
    repeated = {"prompt": "bonn lies where", "rephrases": ["Bonn?"]}
    file.write_text("".join(json.dumps(record) + "\n" for record in (asdict(ROME), bare, repeated)))
    own = load_pseudo_knowledge(file)
    assert own.facts == (ROME, PseudoFact("Bonn lies where?", ("Where is Bonn?",)))
    assert (own.noise, own.unrelated) == (shipped.noise, shipped.unrelated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (
            '{"prompt": "a", "rephrases": ["b"]}\n{"prompt": "a"}',
            "line 2: the field `rephrases` is missing or empty",
        ),
        ('{"prompt": "a", "rephrases": []}', "line 1: the field `rephrases` is missing or empty"),
        ('{"rephrases": ["b"]}', "line 1: the field `prompt` is missing; add it"),
        (
            '{"prompt": "a", "rephrases": [1]}',
            r"line 1: the field `rephrases\[0\]` must be text, not a number",
        ),
        ("prompt,target\na,b\n", "the CSV header has no column `rephrases`"),
    ],
)
def test_bad_own_facts(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "facts"
    file.write_text(text)
    with pytest.raises(MegError, match=message):
        load_pseudo_knowledge(file)


# --- without


@pytest.mark.parametrize(
    ("edit", "left"),
    [
        (Edit("1", "Where?", "x", subject="rome"), (EMMA, JOYCE)),
        (Edit("1", "rome LIES in", "x"), (EMMA, JOYCE)),
        (Edit("1", "Where?", "x", rephrases=("Rome is in?",)), (EMMA, JOYCE)),
        (Edit("1", "Where?", "x", subject="Emma"), (ROME,)),
        (Edit("1", "Where?", "x", subject="Emm"), (ROME, EMMA, JOYCE)),
        (Edit("1", "Where?", "x", neighbours=("Rome is in",)), (EMMA, JOYCE)),
    ],
)
def test_without_drops_every_fact_that_touches_an_edit(edit: Edit, left: tuple[PseudoFact, ...]) -> None:
    assert SMALL.without(iter([edit])).facts == left


@pytest.mark.parametrize(
    ("edit", "neighbours"),
    [
        (Edit("1", "Where?", "x", subject="Oslo"), ("Bonn is in",)),
        (Edit("1", "bonn is in", "x"), ("Oslo is in",)),
        (Edit("1", "Where?", "x", neighbours=("Bonn is in",)), ("Oslo is in",)),
    ],
)
def test_without_drops_neighbours_that_touch_an_edit(edit: Edit, neighbours: tuple[str, ...]) -> None:
    assert SMALL.without([edit]).facts[0].neighbours == neighbours


@pytest.mark.parametrize(
    "edit",
    [
        Edit("1", "Who won the cup?", "x"),
        Edit("1", "Where?", "x", rephrases=("who WON the cup",)),
        Edit("1", "Where?", "x", neighbours=("Who won the cup?",)),
        Edit("1", "Where?", "x", subject="Cup"),
    ],
)
def test_without_drops_unrelated_questions_that_touch_an_edit(edit: Edit) -> None:
    left = SMALL.without([edit])
    assert left.unrelated == ("how old is emma stone",)
    assert left.noise == SMALL.noise


def test_without_nothing_changes_nothing() -> None:
    assert SMALL.without([]) == SMALL


# --- facts in the words of the edits

LED = ("Who leads {}?", "The head of {} is", "{} is led by", "At the top of {} stands")


def leaders(count: int, *wordings: str) -> list[Edit]:
    subjects = [f"Company {i}" for i in range(count)]
    prompts = [wordings[i % len(wordings)].format(subject) for i, subject in enumerate(subjects)]
    return [
        Edit(str(i), prompt, "Ann", rephrases=(f"{subject}, head?",), subject=subject, relation="head")
        for i, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True))
    ]


def test_new_words_of_the_edits_are_put_around_free_subjects() -> None:
    edits, knowledge = leaders(8, *LED), many(400)
    known = {fact.subject for fact in knowledge.facts}
    own = knowledge.in_words_of(edits, seed=1)
    assert own == knowledge.in_words_of(edits, seed=1)
    assert own != knowledge.in_words_of(edits, seed=2)
    assert (own.noise, own.unrelated) == (knowledge.noise, knowledge.unrelated)
    assert own.facts[:400] == knowledge.facts
    made = own.facts[400:]
    assert len(made) == OWN_FACTS == len({fact.subject for fact in made})
    for fact in made:
        assert (fact.relation, fact.neighbours) == ("head", ())
        assert fact.subject in known
        texts = {fact.prompt, *fact.rephrases}
        assert len(texts) == OWN_WORDINGS
        assert texts <= {wording.format(fact.subject) for wording in LED}


def test_no_facts_in_the_words_of_the_edits_without_a_second_wording() -> None:
    knowledge = many(10)
    one_wording = leaders(4, LED[0])
    no_relation = [replace(edit, relation=None) for edit in leaders(4, *LED)]
    not_named = [replace(edit, subject=f"Firm {edit.id}") for edit in leaders(4, *LED)]
    for edits in ([], one_wording, no_relation, not_named):
        assert knowledge.in_words_of(edits, seed=0) is knowledge


@pytest.mark.parametrize(("known", "made"), [(LED[:2], False), (LED[:1], True)])
def test_no_facts_in_the_words_of_the_edits_where_most_are_known(known: Sequence[str], made: bool) -> None:
    prompt, *rephrases = (wording.format("Oslo") for wording in (*known, "{}?"))
    knowledge = replace(many(10), facts=(*many(10).facts, PseudoFact(prompt, tuple(rephrases), (), "Oslo", "other")))
    assert (knowledge.in_words_of(leaders(8, *LED), seed=0) != knowledge) is made


def test_facts_in_the_words_of_the_edits_hold_nothing_of_an_edited_fact() -> None:
    edits = leaders(8, *LED, "Beside the president of Subject 3, who leads {}?")
    asked = Edit("x", "Where?", "here", neighbours=tuple(wording.format("Subject 5") for wording in LED))
    knowledge = many(40).without([*edits, asked])
    made = knowledge.in_words_of([*edits, asked, Edit("y", "Who?", "Bo", subject="Subject 3")], seed=0).facts[40:]
    assert made
    assert not any(
        "Subject 3" in text or "Subject 5" in text for fact in made for text in (fact.prompt, *fact.rephrases)
    )


def test_a_fact_is_not_made_again_in_other_words() -> None:
    heads = tuple(PseudoFact(f"Head of Town {i}", ("r",), (), f"Town {i}", "head") for i in range(50))
    knowledge = PseudoKnowledge((*heads, ROME), (), ())
    made = knowledge.in_words_of(leaders(8, *LED), seed=0).facts[51:]
    assert [fact.subject for fact in made] == ["Rome"]


# --- split


def test_split_is_deterministic_disjoint_and_complete() -> None:
    knowledge = many(200)
    training, calibration = knowledge.split(0.2, seed=3)
    assert (training, calibration) == knowledge.split(0.2, seed=3)
    assert training.facts != knowledge.split(0.2, seed=4)[0].facts
    assert not {f.subject for f in training.facts} & {f.subject for f in calibration.facts}
    assert {f.prompt for f in (*training.facts, *calibration.facts)} == {f.prompt for f in knowledge.facts}
    for name, held_out in (("noise", 10), ("unrelated", 6)):
        parts: list[tuple[str, ...]] = [getattr(part, name) for part in (training, calibration)]
        assert len(parts[1]) == held_out
        assert sorted((*parts[0], *parts[1])) == sorted(getattr(knowledge, name))
    assert len(calibration.facts) == 40


def test_split_shows_calibration_no_neighbour_of_training() -> None:
    training, calibration = many(200).split(0.5, seed=0)
    seen = {text for fact in training.facts for text in fact.neighbours}
    left = [text for fact in calibration.facts for text in fact.neighbours]
    assert not seen & set(left)
    assert all(text.startswith("own") for text in left)
    assert len(left) == len(calibration.facts)


def test_facts_without_a_subject_are_split_one_by_one() -> None:
    facts = tuple(PseudoFact(f"p {i}", ("r",), ()) for i in range(10))
    training, calibration = PseudoKnowledge(facts, (), ()).split(0.3, seed=0)
    assert (len(training.facts), len(calibration.facts)) == (7, 3)


@pytest.mark.parametrize("held_out", [0, 1, -0.1, float("nan")])
def test_split_needs_a_share(held_out: float) -> None:
    with pytest.raises(MegError, match="must be between 0 and 1"):
        SMALL.split(held_out, seed=0)
