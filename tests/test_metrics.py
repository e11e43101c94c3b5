"""The metrics, each on examples worked out by hand."""

import math
from dataclasses import astuple

import pytest

from megedit.evaluate.metrics import (
    Metrics,
    answer_text,
    answers_target,
    begins_with_target,
    harmonic_mean,
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


def test_the_score() -> None:
    metrics = Metrics(100.0, 100.0, 50.0, 50.0, 25.0, 25.0)
    assert metrics.score is not None and math.isclose(metrics.score, 6 / (2 / 100 + 2 / 50 + 2 / 25))
    for missing in range(6):
        values = [None if i == missing else value for i, value in enumerate(astuple(metrics))]
        assert Metrics(*values).score is None
