"""Perturbed queries, each worked out by hand, and what must hold for every draw."""

import random
import unicodedata
from importlib.resources import files
from typing import Any

import pytest

from megedit.evaluate.perturb import (
    NOISE_SENTENCES,
    PERTURBATIONS,
    lower,
    noise,
    perturb,
    polite,
    question,
    typos,
    upper,
)

CLOZE = "The mother tongue of Danielle Darrieux is"
QUESTION = "Who wrote Dune?"


class Scripted(random.Random):
    """Draws what it was told, in order; samples the first ones."""

    draws: list[Any]

    def choice(self, seq: Any) -> Any:
        drawn = self.draws.pop(0)
        assert drawn in seq
        return drawn

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        drawn: int = self.draws.pop(0)
        assert stop is not None and drawn in range(start, stop, step)
        return drawn

    def sample(self, population: Any, k: int, **more: Any) -> Any:
        return list(population)[:k]


def scripted(*draws: Any) -> random.Random:
    rng = Scripted()
    rng.draws = list(draws)
    return rng


@pytest.mark.parametrize(
    ("query", "draws", "expected"),
    [
        ("The mother is", (1, "swap", 2), "The mohter is"),
        ("The mother is", (1, "drop", 5), "The mothe is"),
        ("The mother is", (1, "double", 1), "The moother is"),
        ("The mother tongue is", (2, "swap", 1, "drop", 1), "The mtoher tngue is"),
        ("The mother is", (2, "swap", 1), "The mtoher is"),  # only one word is long enough
        ("Die Große!", (1, "swap", 3), "Die Groeß!"),
        ("столица", (1, "drop", 3), "стоица"),
        ("القاهرة", (1, "double", 2), "القاهرة".replace("ق", "قق")),
        ("महाराष्ट्र", (1, "swap", 1), "मराहाष्ट्र"),
        ("baaa", (1, "drop", 1), "baa"),
    ],
)
def test_typos(query: str, draws: tuple[Any, ...], expected: str) -> None:
    assert typos(query, scripted(*draws)) == expected


def test_every_slip_of_a_word() -> None:
    swapped, dropped, doubled = {"acbd", "abdc"}, {"acd", "abd", "abc"}, {"abbcd", "abccd", "abcdd"}
    assert {typos("abcd", random.Random(seed)) for seed in range(500)} == swapped | dropped | doubled


def test_a_word_of_one_letter_repeated_is_not_swapped() -> None:
    assert {typos("aaaa", random.Random(seed)) for seed in range(100)} == {"aaa", "aaaaa"}


def test_typos_keep_digits_short_words_and_first_letters() -> None:
    query = "In 20245 was Apple's A5chip the best?"
    for seed in range(300):
        words = typos(query, random.Random(seed)).split(" ")
        assert [words[i] for i in (0, 1, 2, 5)] == ["In", "20245", "was", "the"]
        assert words[3][0] == "A" and words[3].endswith("'s")
        assert words[4].startswith("A5c") and words[6][0] == "b" and words[6][-1] == "?"
        changed = sum(a != b for a, b in zip(words, query.split(" "), strict=True))
        assert changed in (1, 2)


def test_typos_keep_marks_on_their_letters() -> None:
    letters = {"म", "हा", "रा", "ष्", "ट्", "र"}
    for seed in range(100):
        text = typos("महाराष्ट्र", random.Random(seed))
        found: list[str] = []
        for char in text:
            if unicodedata.category(char)[0] == "M":
                found[-1] += char
            else:
                found.append(char)
        assert set(found) <= letters and found[0] == "म" and len(found) in (5, 6, 7)


@pytest.mark.parametrize("query", ["", " ", "?!", "Who is it?", "12345", "日本の首都は東京です", "हिन्दी", "\u0301"])
def test_typos_leave_a_query_without_long_words(query: str) -> None:
    assert typos(query, random.Random(0)) == query


@pytest.mark.parametrize(
    ("query", "small", "large"),
    [
        ("Who Wrote Dune?", "who wrote dune?", "WHO WROTE DUNE?"),
        ("Столица", "столица", "СТОЛИЦА"),
        ("Straße", "straße", "STRASSE"),
        ("東京は", "東京は", "東京は"),
        ("القاهرة", "القاهرة", "القاهرة"),
        ("दिल्ली", "दिल्ली", "दिल्ली"),
        ("", "", ""),
    ],
)
def test_case(query: str, small: str, large: str) -> None:
    rng = random.Random(0)
    assert lower(query, rng) == small and upper(query, rng) == large


def test_noise() -> None:
    assert noise(QUESTION, scripted("We had soup for lunch.")) == "We had soup for lunch. Who wrote Dune?"
    assert noise(QUESTION, random.Random(0), ["So."]) == "So. Who wrote Dune?"
    drawn = {noise(QUESTION, random.Random(seed)) for seed in range(1000)}
    assert drawn == {f"{sentence} {QUESTION}" for sentence in NOISE_SENTENCES}
    with pytest.raises(ValueError, match="no sentence"):
        noise(QUESTION, random.Random(0), [])


def test_the_noise_sentences_are_not_those_of_training() -> None:
    shipped = (files("megedit") / "data" / "noise.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(NOISE_SENTENCES)) == 40
    assert not set(NOISE_SENTENCES) & set(shipped)
    assert all(sentence == sentence.strip() and sentence.endswith(".") for sentence in NOISE_SENTENCES)


@pytest.mark.parametrize(
    ("query", "asked", "inner"),
    [
        (QUESTION, "Can you tell me: Who wrote Dune?", QUESTION),
        (" Who? ", "Can you tell me: Who?", "Who?"),
        (CLOZE, 'What comes next: "The mother tongue of Danielle Darrieux is ..."?', f"{CLOZE} ..."),
        ("Paris is in...", 'What comes next: "Paris is in ..."?', "Paris is in ..."),
        ("X is in \u2026 ", 'What comes next: "X is in ..."?', "X is in ..."),
        ("Who? It is", 'What comes next: "Who? It is ..."?', "Who? It is ..."),
        ("首都は\uff1f", "Can you tell me: 首都は\uff1f", "首都は\uff1f"),
        ("أين؟", "Can you tell me: أين؟", "أين؟"),
        ("Столица", 'What comes next: "Столица ..."?', "Столица ..."),
    ],
)
def test_questions_and_requests(query: str, asked: str, inner: str) -> None:
    rng = random.Random(0)
    assert question(query, rng) == asked
    assert polite(query, rng) == f"Could you please answer this? {inner} Thank you."


def test_perturb_is_the_same_for_the_same_name_query_and_seed() -> None:
    for name in PERTURBATIONS:
        assert perturb(name, CLOZE, 0) == perturb(name, CLOZE, 0) != CLOZE
    for name in ("typos", "noise"):
        assert len({perturb(name, CLOZE, seed) for seed in range(20)}) > 5
    # The sentence depends on the query too, and all of it is the same on every machine.
    assert len({perturb("noise", f"Who is {i}?", 0).removesuffix(f"Who is {i}?") for i in range(20)}) > 5
    assert perturb("typos", CLOZE, 0) == "The mother tongeu of Dainelle Darrieux is"


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_perturbation(name: str) -> None:
    assert "\n" not in PERTURBATIONS[name].description
    for blank in ("", "  ", "\n"):
        assert perturb(name, blank, 0) == blank
    for query in ("?", "...", "東京は", "مصر هي", "नई दिल्ली", "\u0301"):
        assert query.rstrip(".").casefold() in perturb(name, query, 1).casefold()  # too short for a typo


def test_an_unknown_perturbation() -> None:
    with pytest.raises(ValueError, match=r"must be one of.*'typos'.*not 'shout'"):
        perturb("shout", CLOZE, 0)
