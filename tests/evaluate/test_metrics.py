"""The metrics, each on examples worked out by hand."""

import math
import subprocess
import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from megedit.edits import Edit, EditSet
from megedit.errors import MegError
from megedit.evaluate import EvaluationSettings, cases_of, find_protocol
from megedit.evaluate.metrics import (
    answer_text,
    answers_target,
    begins_with_target,
    contains_target,
    exact_match,
    harmonic_mean,
    long_answer,
    mean_log_prob,
    ngram_entropy,
    normalise_answer,
    success,
    token_agreement,
)


@pytest.mark.parametrize(
    ("generated", "text"),
    [
        ("Paris", "Paris"),
        ("  Paris. ", "Paris"),
        ("Paris .", "Paris"),
        ("Paris..", "Paris."),
        ("U.S.A.", "U.S.A"),
        ("Paris\nand more", "Paris"),
        ("\nParis", ""),
        ("Paris!", "Paris!"),
        ("Paris。", "Paris。"),
        (".", ""),
        ("", ""),
    ],
)
def test_answer_text(generated: str, text: str) -> None:
    assert answer_text(generated) == text


@pytest.mark.parametrize(
    ("generated", "target", "right"),
    [
        ("Paris", "Paris", True),
        ("Paris.", "Paris", True),
        ("paris", "PARIS", True),
        (" Paris.\nQ: What", "Paris", True),
        ("Apple Inc", "Apple Inc.", True),
        ("Paris, France", "Paris", False),
        ("Parisian", "Paris", False),
        ("Pari", "Paris", False),
        ("The answer is Paris.", "Paris", False),
        ("\nParis", "Paris", False),
        ("", "Paris", False),
        ("東京", "東京", True),
        ("東京都", "東京", False),
        ("ԲԱՔՈՒ.", "Բաքու", True),
        ("STRASSE", "Straße", True),
        ("القاهرة.", "القاهرة", True),
    ],
)
def test_the_whole_answer_is_the_target(generated: str, target: str, right: bool) -> None:
    assert answers_target(generated, target) is right


@pytest.mark.parametrize(
    ("generated", "target", "right"),
    [
        ("Paris", "Paris", True),
        (" paris, in France", "Paris", True),
        ("Paris\nand more", "Paris", True),
        ("Paris.", "Paris.", True),
        ("Parisian", "Paris", False),
        ("Paris2", "Paris", False),
        ("In Paris", "Paris", False),
        ("Par", "Paris", False),
        ("", "Paris", False),
        ("東京、日本", "東京", True),
        ("東京都", "東京", False),
    ],
)
def test_the_answer_begins_with_the_target(generated: str, target: str, right: bool) -> None:
    assert begins_with_target(generated, target) is right


def test_token_agreement() -> None:
    assert token_agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.75
    assert token_agreement([1], [2]) == 0.0
    assert token_agreement([], []) == 1.0
    with pytest.raises(ValueError, match="zip"):
        token_agreement([1, 2], [1])


def test_harmonic_mean() -> None:
    assert harmonic_mean([50.0, 100.0]) == pytest.approx(200 / 3)
    assert harmonic_mean([100.0] * 6) == pytest.approx(100)
    assert harmonic_mean([100.0] * 5 + [0.0]) == 0.0


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Quick,\tbrown Fox!", "quick brown fox"),
        ("a theory of an animal", "theory of animal"),
        ("Theatre Anna", "theatre anna"),
        ("U.S.", "us"),
        ("don\u2019t", "dont"),
        ("Jean-Paul", "jeanpaul"),
        ("1914\u20131918", "19141918"),  # an en dash is as good as a hyphen
        ("Paris\u2014the capital", "paris capital"),
        ("`print`", "print"),
        ("C++", "c++"),
        ("$5", "$5"),
        ("first\nsecond", "first second"),
        ("Straße", "strasse"),
        ("\uff21\uff50\uff50\uff4c\uff45", "apple"),  # full-width letters
        ("Cafe\u0301", "caf\u00e9"),
        ("¿Qué?", "qué"),
        ("«Москва»", "москва"),
        ("「東京」。", "東京"),
        ("القاهرة؟", "القاهرة"),
        ("\u200fمصر", "مصر"),  # a right-to-left mark
        ("नई दिल्ली।", "नई दिल्ली"),
        ("", ""),
        (" \n\t ", ""),
        ("?!\u2026", ""),
        ("The a", ""),
    ],
)
def test_normalised_answers(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised
    assert normalise_answer(normalised) == normalised


@pytest.mark.parametrize(
    ("generated", "answers", "right"),
    [
        ("Paris", ["Paris"], True),
        (" the PARIS!\nQ: What", ["Paris"], True),
        ("Paris", ["London", "Paris"], True),
        ("New York City.", ["New York"], False),
        ("new york", ["New York"], True),
        ("The answer is Paris", ["Paris"], False),
        ("Beatles", ["The Beatles"], True),
        ("Москва.", ["москва"], True),
        ("Нижний Новгород", ["Нижний  Новгород"], True),
        ("東京。", ["東京"], True),
        ("東京都", ["東京"], False),
        ("القاهرة.", ["القاهرة"], True),
        ("नई दिल्ली।", ["नई दिल्ली"], True),
        ("नई दिल", ["नई दिल्ली"], False),
        ("The The.", ["the the"], True),  # compared as they are: nothing is left of them
        ("A", ["The The"], False),
        ("A.", ["A"], True),
        ("?", ["?"], True),
        ("!", ["?"], False),
        (".", ["."], True),
        ("", ["."], False),
        ("", ["Paris"], False),
        ("   ", ["Paris"], False),
        ("?", ["Paris"], False),
        ("\nParis", ["Paris"], False),
        ("", [""], True),
        ("Paris", [""], False),
        ("Paris", [], False),
    ],
)
def test_exact_match(generated: str, answers: list[str], right: bool) -> None:
    assert exact_match(generated, answers) is right


@pytest.mark.parametrize(
    ("generated", "answers", "right"),
    [
        ("The answer is Paris.", ["Paris"], True),
        ("Paris", ["Paris"], True),
        ("It is London.", ["Paris", "London"], True),
        ("It is in New York City.", ["the New York"], True),
        ("new and york", ["New York"], False),
        ("York New", ["New York"], False),
        ("Parisian", ["Paris"], False),
        ("Paris-Nord", ["Paris"], False),
        ("written in C++", ["C"], False),
        ("Well:\nParis", ["Paris"], False),
        ("столица \u2014 Москва, Россия", ["Москва"], True),
        ("в Москве", ["Москва"], False),
        ("هي القاهرة، مصر", ["القاهرة"], True),
        ("यह नई दिल्ली है।", ["नई दिल्ली"], True),
        ("दिल्ली", ["दिल"], False),
        ("서울은 수도", ["서울"], False),  # written with spaces, so by whole words
        ("答えは東京です。", ["東京"], True),
        ("答案是 东 京", ["东京"], True),
        ("京都", ["東京"], False),
        ("กรุงเทพมหานคร", ["กรุงเทพ"], True),
        ("กี", ["ก"], False),  # a letter with another vowel
        ("AI研究所", ["AI研究"], True),
        ("OpenAI研究所", ["AI研究"], False),
        ("I like The The.", ["The The"], True),
        ("I like the music", ["The The"], False),
        ("What?", ["?"], False),
        ("", ["Paris"], False),
        ("  ", ["Paris"], False),
        ("...", ["Paris"], False),
        ("Paris", [""], False),
        ("", [""], False),
        ("Paris", [], False),
    ],
)
def test_the_answer_contains_the_target(generated: str, answers: list[str], right: bool) -> None:
    assert contains_target(generated, answers) is right


def test_the_mean_of_log_probabilities() -> None:
    assert mean_log_prob([-1.0, -2.0, -6.0]) == -3.0
    assert mean_log_prob([-0.5]) == -0.5
    assert mean_log_prob([-1.0, -math.inf]) == -math.inf
    with pytest.raises(ValueError, match="without tokens"):
        mean_log_prob([])


def test_the_more_probable_continuation_wins() -> None:
    assert success(-1.0, -2.0) is True
    assert success(-2.0, -1.0) is False
    assert success(-1.0, -1.0) is False
    # By the mean over its tokens the long one wins, by the sum it would lose.
    assert success(mean_log_prob([-1.0, -1.0, -1.0]), mean_log_prob([-2.0])) is True


@pytest.mark.parametrize("text", ["", "  \n", "one", "one two", "東京", "a a a a a", "?!"])
def test_a_short_or_constant_text_has_no_entropy(text: str) -> None:
    assert ngram_entropy(text) == 0.0


@pytest.mark.parametrize(
    ("text", "bigrams", "trigrams"),
    [
        ("a b c", 1, 0),
        ("a b c d e", 2, math.log2(3)),
        ("the cat the cat the", 1, math.log2(3) - 2 / 3),  # ab ba ab ba; aba bab aba
        ("A a A", 1, 0),  # case counts
        ("Yes, yes.", math.log2(3), 1),  # four words
        ("Yes , yes .", math.log2(3), 1),
        ("東京。", 1, 0),
        ("हिन्दी है भाषा", 1, 0),  # marks do not part words
        ("на на юг", 1, 0),
    ],
)
def test_ngram_entropy(text: str, bigrams: float, trigrams: float) -> None:
    assert ngram_entropy(text) == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)  # rounded logarithms


@pytest.mark.parametrize(
    ("generated", "reference", "rouge_l", "bleu"),
    [
        # Precisions of the n-grams: 5/6, 4/5, 3/4, 2/3, whose product is 1/3.
        ("the cat sat on the hat", "the cat sat on the mat", 5 / 6, (1 / 3) ** 0.25),
        # Letter by letter: 7/8, 5/7, 4/6, 3/5, whose product is 1/4; 7 of 8 letters in common order.
        ("东京是日本的首都", "京都是日本的首都", 7 / 8, (1 / 4) ** 0.25),
        # Two of three words; 2/3, 1/2, and 1/2 of the only trigram, by smoothing; there are no 4-grams.
        ("Москва столица России", "Москва столица Франции", 2 / 3, (2 / 3 / 2 / 2) ** (1 / 3)),
        ("Paris is\nthe capital of France", "Paris is the capital of France", 1, 1),
        ("القاهرة عاصمة مصر", "القاهرة عاصمة مصر", 1, 1),
        ("दिल्ली भारत की राजधानी है।", "दिल्ली भारत की राजधानी है।", 1, 1),
        ("กรุงเทพ", "กรุงเทพ", 1, 1),
        ("東京", "東京", 1, 1),
        ("дом", "кот", 0, 0),
        ("", "Paris", 0, 0),
        ("Paris", "", 0, 0),
        (" \n", " ", 0, 0),
        ("", "", 0, 0),
    ],
)
def test_long_answers(generated: str, reference: str, rouge_l: float, bleu: float) -> None:
    assert long_answer(generated, reference) == pytest.approx({"rouge_l": rouge_l, "bleu": bleu})  # products, roots


def test_rouge_on_english_is_that_of_the_library() -> None:
    said, reference = "The U.S. capital: Washington_D.C., (since 1800)!", "Since 1800, the capital is Washington, D.C."
    expected = RougeScorer(["rougeL"]).score(reference, said)["rougeL"].fmeasure
    assert long_answer(said, reference)["rouge_l"] == expected


def test_the_libraries_of_long_answers_are_imported_when_needed() -> None:
    code = "import sys, megedit.evaluate.metrics; sys.exit(len({'rouge_score', 'sacrebleu'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


@pytest.mark.parametrize("package", ["rouge_score", "sacrebleu"])
def test_a_library_of_long_answers_that_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is asked."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    edits = EditSet.of([Edit("1", "Q", "A")], "here")
    with pytest.raises(MegError, match=r"is needed for the protocol long; run pip install 'megedit\[long\]'"):
        cases_of(edits, find_protocol("long"), EvaluationSettings())
