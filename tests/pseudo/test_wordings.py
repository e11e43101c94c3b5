"""Facts in other wordings: other questions about a subject."""

import random
import tracemalloc

from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge
from megedit.pseudo.wordings import OtherQuestions, calibration_texts


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


def test_calibration_texts() -> None:
    facts = tuple(
        PseudoFact(f"Who made {i}?", (f"{i}: who made it?", f"Maker of {i}?"), (f"Who sold {i}?",), str(i), "maker")
        for i in range(10)
    )
    held_out = PseudoKnowledge(facts, ("It rains.",), tuple(f"Unrelated {i}?" for i in range(20, 40)))
    enrolled, familiar, unfamiliar = calibration_texts(held_out, seed=0)
    names = {fact.subject for fact in facts if fact.prompt in enrolled}
    assert len(enrolled) == len(names) == 5
    assert len(familiar) == 10 and sum(text.startswith("It rains. ") for text in familiar) == 5
    bare = [text.removeprefix("It rains. ") for text in familiar]
    assert sorted(bare) == sorted(text for fact in facts if fact.subject in names for text in fact.rephrases)
    others = {fact.prompt for fact in facts} - {*enrolled}
    assert others <= set(unfamiliar) and len(unfamiliar) == 10  # the others, and as many unrelated as are enrolled
    assert calibration_texts(held_out, seed=0) == (enrolled, familiar, unfamiliar)
    assert len(calibration_texts(held_out, seed=0, limit=2)[0]) == 2
    assert len(calibration_texts(held_out, seed=0, wordings=1)[1]) == 5


def test_a_longer_name_of_an_enrolled_subject_is_unfamiliar() -> None:
    pairs = (("Chile", "Bank of Chile"), ("Peru", "Bank of Peru"), ("Oslo", "Bank of Oslo"), ("Rome", "Bank of Rome"))
    facts = tuple(PseudoFact(f"Where is {name}?", ("r",), (), name, "place") for pair in pairs for name in pair)
    enrolled, _, unfamiliar = calibration_texts(PseudoKnowledge(facts, (), ()), seed=0)
    subjects = {fact.subject for fact in facts if fact.prompt in enrolled}
    assert {f"Where is {long}?" for short, long in pairs if short in subjects and long not in subjects} <= {*unfamiliar}
