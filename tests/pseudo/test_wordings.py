"""Facts in other wordings: other questions about a subject."""

import random
import tracemalloc

from megedit.pseudo.knowledge import PseudoFact
from megedit.pseudo.wordings import OtherQuestions


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
