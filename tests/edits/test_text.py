"""Queries as they are cleaned and compared, and the ids made from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megedit.edits import clean_query, normalise_query, query_id
from megedit.edits.text import strip_invisible


@pytest.mark.parametrize(
    "text",
    [
        "What is Léon?",
        " what  IS\tléon ?! ",
        "\uff37hat is Le\u0301on…",
        "what is léon:",
        "what is léon",
        "What\u200b is L\u00adéon\u2060?",  # zero-width space, soft hyphen, word joiner
        "\ufeffWhat is Léon?\x07",
        "What\u00a0is\r\nLéon?",
        "3. What is Léon?",
        "(12) What is Léon?",
        "3)\tWhat is Léon?",
        "- What is Léon?",
        "• 1. what is Léon",
    ],
)
def test_queries_that_count_as_the_same(text: str) -> None:
    assert normalise_query(text) == "what is léon"
    assert query_id(text) == query_id("What is Léon?")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  3. Who is LÉON ?", "Who is LÉON ?"),  # case and closing marks stay
        ("3.5 metres are", "3.5 metres are"),
        ("1984 was written by", "1984 was written by"),
        ("2024. What happened?", "2024. What happened?"),  # a year
        ("-5 degrees are", "-5 degrees are"),
        ("1.", "1."),
        ("-", "-"),
        ("\u200b", ""),
    ],
)
def test_clean_query_takes_away_what_does_not_count(text: str, cleaned: str) -> None:
    assert clean_query(text) == cleaned


def test_query_of_marks_alone_stays_itself() -> None:
    assert normalise_query(" ?! ") == "?!"


@given(st.text())
def test_cleaning_and_normalising_twice_change_nothing_more(text: str) -> None:
    assert clean_query(clean_query(text)) == clean_query(text)
    assert normalise_query(clean_query(text)) == normalise_query(text)


@given(st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp"])))
def test_invisible_characters_at_the_ends_are_nothing(text: str) -> None:
    assert strip_invisible(text) == clean_query(text) == ""
    assert strip_invisible(f"{text}a{text}b{text}") == f"a{text}b"


def test_ids_are_short_and_stable() -> None:
    assert query_id("Who wrote Emma?") == "mcbct6i3" == query_id("Who wrote Emma?", 16)[:8]
    assert len({query_id(f"Who wrote book {i}?") for i in range(10_000)}) == 10_000
