"""Facts in other wordings: other questions about a subject, and facts in the words of the edits."""

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest

from megedit.edits import Edit
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from megedit.pseudo.wordings import OWN_FACTS, OWN_WORDINGS, OtherQuestions, in_words_of
from tests.pseudo.test_knowledge import ROME, many

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


def test_other_questions_are_drawn_evenly() -> None:
    facts = [PseudoFact(f"S has {i}", ("r",), (), "S", f"R{i}") for i in range(4)]
    questions, rng = OtherQuestions(facts), random.Random(0)
    for i, fact in enumerate(facts):
        drawn = [questions.about(fact, rng) for _ in range(300)]
        counts = [drawn.count(f"S has {j}") for j in range(4)]
        assert counts[i] == 0 and sum(counts) == 300
        assert all(60 < count < 140 for j, count in enumerate(counts) if j != i)


def test_other_questions_need_memory_in_proportion_to_the_relations() -> None:
    def peak(count: int) -> int:
        facts = [PseudoFact(f"S{i} has {i}", ("r",), (), f"S{i}", f"R{i}") for i in range(count)]
        tracemalloc.start()
        questions = OtherQuestions(facts)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert questions.about(facts[0], random.Random(0))
        return held

    assert peak(4000) < 6 * peak(1000)  # in proportion: 4; with a list of the others for each: 16


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
    own = in_words_of(knowledge, edits, seed=1)
    assert own == in_words_of(knowledge, edits, seed=1)
    assert own != in_words_of(knowledge, edits, seed=2)
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
        assert in_words_of(knowledge, edits, seed=0) is knowledge


@pytest.mark.parametrize(("known", "made"), [(LED[:2], False), (LED[:1], True)])
def test_no_facts_in_the_words_of_the_edits_where_most_are_known(known: Sequence[str], made: bool) -> None:
    prompt, *rephrases = (wording.format("Oslo") for wording in (*known, "{}?"))
    knowledge = replace(many(10), facts=(*many(10).facts, PseudoFact(prompt, tuple(rephrases), (), "Oslo", "other")))
    assert (in_words_of(knowledge, leaders(8, *LED), seed=0) != knowledge) is made


def test_facts_in_the_words_of_the_edits_hold_nothing_of_an_edited_fact() -> None:
    edits = leaders(8, *LED, "Beside the president of Subject 3, who leads {}?")
    asked = Edit("x", "Where?", "here", neighbours=tuple(wording.format("Subject 5") for wording in LED))
    knowledge = many(40).without([*edits, asked])
    made = in_words_of(knowledge, [*edits, asked, Edit("y", "Who?", "Bo", subject="Subject 3")], seed=0).facts[40:]
    assert made
    assert not any(
        "Subject 3" in text or "Subject 5" in text for fact in made for text in (fact.prompt, *fact.rephrases)
    )


def test_a_fact_is_not_made_again_in_other_words() -> None:
    heads = tuple(PseudoFact(f"Head of Town {i}", ("r",), (), f"Town {i}", "head") for i in range(50))
    knowledge = PseudoKnowledge((*heads, ROME), (), ())
    made = in_words_of(knowledge, leaders(8, *LED), seed=0).facts[51:]
    assert [fact.subject for fact in made] == ["Rome"]
