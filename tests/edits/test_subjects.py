"""Names in texts: whole words, and whether a subject stands on its own or inside a longer name."""

import pytest

from megedit.edits.subjects import SubjectIndex, tell_apart


def test_subject_index_finds_whole_words_only() -> None:
    index = SubjectIndex(["New York City", "Rome", "C++", "!!!"])
    named = ["in new york  city?", "Rome's walls", "Romeo", "New York", "!!!"]
    assert [index.named_in(text) for text in named] == [True, True, False, False, True]
    assert "ROME" in index
    assert "York" not in index
    assert not SubjectIndex([]).named_in("anything")


def test_subjects_named_alone() -> None:
    index = SubjectIndex(["Chile", "Big Peru"])
    assert index.named_alone_in("Where is Chile?") and index.named_alone_in("the size of Big Peru")
    assert not index.named_alone_in("Where is the Bank of Chile?") and not index.named_alone_in("Where is Peru?")
    assert index.named_in("Where is the Bank of Chile?")


@pytest.mark.parametrize(
    ("text", "subject", "alone"),
    [
        ("Where is the Bank of Chile?", "Chile", False),
        ("Chile or the Bank of Chile?", "Chile", True),
        ("Where is chile?", "Chile", True),
        ("WHERE IS THE BANK OF CHILE?", "Chile", True),  # capital letters tell nothing here
        ("Jill Ireland was native to", "Ireland", False),
        ("jill ireland was native to", "Ireland", True),
        ("In Ireland, they speak", "Ireland", True),
        ("It rained. In Ireland they speak", "Ireland", True),
        ("Who lives in the State of Somaliland?", "Somaliland", False),
        ("The Beatles were formed in", "Beatles", True),
        ("Toyota's founder is", "Toyota", True),
        ("What is BBC One?", "BBC", False),
        ("The Boeing 747 was made by", "Boeing", False),
        ("The language of Tel Aviv-Los Angeles is", "Tel Aviv", False),
        ("The Delegation to Turkey is in", "Turkey", True),
        ("It rained in Oslo. Toei Company formed in", "Toei Company", True),
        ("A list of\nOslo", "Oslo", True),
        ("Where is Tooddya Fire Sttaions?", "Toodyay Fire Station", False),  # more than one slip in a word
        ("Where is the Fire Station?", "Toodyay Fire Station", False),  # a word is missing
        ("Bundesautobahn 573 belongs to", "Bundesautobahn 57", False),  # numbers are exact
        ("Who made the S63B?", "S63A", False),
        ("Romeo", "Rome", False),  # so are short words
        ("The capital of Iraq is", "Iran", False),
        ("Who is Karl?", "Carl", False),  # and how a word begins
        ("When was the founding?", "of", False),
        ("Bill Gates was born in", "Gates", False),  # names that are words, too
        ("Will Smith plays", "Smith", False),
        ("It rained. May Parker lives with", "Parker", False),
        ("Fire Emblem was made by", "Emblem", False),
        ("Twenty One Pilots, of", "Pilots", False),
        ("Who Rome's founders were", "Rome", True),  # words that name nothing
        ("What Toyota makes is", "Toyota", True),
        ("Where Ireland lies is", "Ireland", True),
        ("Does Chile have", "Chile", True),
        ("Before Oslo, the capital was", "Oslo", True),
        ("!!!", "!!!", True),
        ("", "Rome", False),
    ],
)
def test_a_subject_on_its_own_or_in_a_longer_name(text: str, subject: str, alone: bool) -> None:
    assert SubjectIndex([subject]).named_alone_in(text) is alone


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ("What was the revenue of Acme in 2019?", "What was the revenue of Acme in 2020?", True),
        ("What was the revenue of Acme?", "What was the revenue of Acme in 2020?", True),
        ("Who won the 3rd race?", "Who won the 4th race?", True),
        ("What is the capital of France?", "What is the capital of Spain?", True),
        ("Who leads Atlas in Berlin?", "Who leads Atlas in Paris?", True),
        ("Who leads Atlas?", "Who is the head of Atlas?", False),
        ("Name the head of Atlas.", "Tell me who leads Atlas.", False),  # the first of a sentence is no name
        ("Who leads Atlas?", "In Berlin, who leads the Atlas Company?", False),  # the other may leave it out
        ("Where was Ada Brooker born?", "Where was Ada Broker born?", False),  # a slip
        ("where was ada brook born?", "Where was Ada Brook born?", False),
        ("WHO LEADS ATLAS?", "Who leads Atlas?", False),
        ("What was the revenue in 2019?", "2019: what was the revenue?", False),
        ("Bill Gates founded what?", "What did Paul Allen found?", True),
        ("", "Who leads Atlas?", False),
    ],
)
def test_questions_that_names_or_numbers_tell_apart(first: str, second: str, apart: bool) -> None:
    assert tell_apart(first, second) is tell_apart(second, first) is apart
