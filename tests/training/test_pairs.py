"""Training pairs: labels that hold, and the same pairs for the same seed."""

import random

from megedit.edits.text import normalise_query
from megedit.encoder import shipped_encoder
from training.corpus import ContrastFact, corpus, texts
from training.near import nearest
from training.pairs import Pairs, Perturbation


def some() -> list[ContrastFact]:
    """A few facts of every set."""
    return corpus()[::40]


def test_the_same_seed_draws_the_same_pairs() -> None:
    facts = some()
    assert Pairs(facts, ["Noise."]).draw(200, "1") == Pairs(facts, ["Noise."]).draw(200, "1")
    assert Pairs(facts, ["Noise."]).draw(200, "1") != Pairs(facts, ["Noise."]).draw(200, "2")


def test_no_text_that_asks_is_drawn_as_one_that_does_not() -> None:
    facts = some()
    asking = {
        (f.target, normalise_query(text)) for f in facts for text in (f.prompt, *(text for _, text in texts(f.fire)))
    }
    pairs = Pairs(facts, ["Noise."]).draw(4000, "0")
    made = ("-swapped", "-renamed", "-stranger")  # of other facts, which may have the same target
    wrong = [p for p in pairs if not p.asks and p.kind not in made and (p.target, normalise_query(p.query)) in asking]
    assert not wrong
    assert 0.4 < sum(p.asks for p in pairs) / len(pairs) < 0.5


def test_a_perturbation_leaves_names_numbers_and_braces_alone() -> None:
    change = Perturbation(["It rained."], random.Random(0))
    for _ in range(300):
        found = change("Which {port} does Marlow 8443 use?").casefold()
        assert "{port}" in found and "marlow 8443" in found


def test_triples_hold_each_prompt_once_and_a_negative_that_asks_for_something_else() -> None:
    facts = some()
    asking = {f.prompt: f.asking for f in facts}
    found = Pairs(facts, ["Noise."]).triples(32, "0")
    assert len({prompt for _, prompt, _ in found}) == len(found) <= 32
    assert not any(normalise_query(negative) in asking[prompt] for _, prompt, negative in found)
    assert found == Pairs(facts, ["Noise."]).triples(32, "0")


def test_near_facts_and_questions_are_about_another_subject() -> None:
    facts = [
        ContrastFact("Where was Ada Lovelace born?", "Rome", "Ada Lovelace", {}, {}, "counterfact"),
        ContrastFact("Where was Alan Turing born?", "Oslo", "Alan Turing", {}, {}, "mquake"),
        ContrastFact("In which town was Turing born?", "Oslo", "Turing", {}, {}, "mquake"),
        ContrastFact("Which port does the gateway use?", "8443", "gateway", {}, {}, "halluedit"),
    ]
    near = nearest(facts, ["Where was Alan Turing born?", "Where was Grace Hopper born?"], shipped_encoder())
    assert near.facts[0][-1] == 3 and set(near.facts[0]) == {1, 2, 3}
    assert near.facts[1] == [0, 3] and near.facts[2] == [0, 3]  # not the other one about Turing
    assert [(text, numbers[-1]) for text, numbers in near.questions] == [
        ("Where was Alan Turing born?", 3),
        ("Where was Grace Hopper born?", 3),
    ]
    assert set(near.questions[0][1]) == {0, 3}
    pairs = Pairs(facts, ["Noise."], near).draw(200, "0")
    asked = [pair for pair in pairs if pair.kind in ("-stranger", "-unrelated")]
    assert asked and not any(pair.asks for pair in asked)
    assert not any("Turing" in pair.query and "Turing" in pair.prompt for pair in asked)


def test_a_pair_is_moved_to_another_name_on_both_sides() -> None:
    texts = {"paraphrase": ("Which town is Ada Lovelace from?",)}
    facts = [
        ContrastFact("Where was Ada Lovelace born?", "Rome", "Ada Lovelace", texts, {}, "mquake"),
        ContrastFact("Where was Alan Turing born?", "Oslo", "Alan Turing", {}, {}, "mquake"),
    ]
    found = [pair for pair in Pairs(facts, ["Noise."]).draw(400, "0") if pair.asks and pair.target == "Rome"]
    moved = [pair for pair in found if "Turing" in pair.prompt]
    assert 0 < len(moved) < len(found) / 2
    assert all("turing" in pair.query.casefold() and "lovelace" not in pair.query.casefold() for pair in moved)
