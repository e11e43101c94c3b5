"""Pseudo-knowledge: loading, keeping it apart from the edits, splitting."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from megedit.edits import Edit
from megedit.errors import MegError
from megedit.pseudo import (
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
