"""Names in texts: whole words, and whether a subject stands on its own or inside a longer name."""

import pytest

from megedit.edits.subjects import SubjectIndex, share_of_name, tell_apart


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
    ("text", "subject", "share"),
    [
        ("Where is the Bank of Chile?", "Chile", 1 / 3),
        ("Chile or the Bank of Chile?", "Chile", 1.0),
        ("Where is chile?", "Chile", 1.0),
        ("WHERE IS THE BANK OF CHILE?", "Chile", 1.0),  # capital letters tell nothing here
        ("Jill Ireland was native to", "Ireland", 1 / 2),
        ("jill ireland was native to", "Ireland", 1.0),
        ("In Ireland, they speak", "Ireland", 1.0),
        ("It rained. In Ireland they speak", "Ireland", 1.0),
        ("Who lives in the State of Somaliland?", "Somaliland", 1 / 3),
        ("The Beatles were formed in", "Beatles", 1.0),
        ("Toyota's founder is", "Toyota", 1.0),
        ("What is BBC One?", "BBC", 1 / 2),
        ("The Boeing 747 was made by", "Boeing", 1 / 2),
        ("The language of Tel Aviv-Los Angeles is", "Tel Aviv", 1 / 2),
        ("The Delegation to Turkey is in", "Turkey", 1.0),
        ("It rained in Oslo. Toei Company formed in", "Toei Company", 1.0),
        ("A list of\nOslo", "Oslo", 1.0),
        ("When did the Mahabad Republic end?", "Republic of Mahabad", 2 / 3),  # another order
        ("Who was the Austrian father of Mechthildi?", "Mechthildis", 2 / 3),  # a letter less
        ("Where is Toodday Fire Station?", "Toodyay Fire Station", 2 / 3),  # another letter
        ("Where is Toodaay Fire Sattion?", "Toodyay Fire Station", 2 / 3),  # neighbours that changed places
        ("Who was Mechthildiss?", "Mechthildis", 2 / 3),  # a letter more
        ("The Bank of Chille", "Chile", 2 / 9),  # in a longer name
        ("Where is Tooddya Fire Sttaions?", "Toodyay Fire Station", 0.0),  # more than one slip in a word
        ("Where is the Fire Station?", "Toodyay Fire Station", 0.0),  # a word is missing
        ("Bundesautobahn 573 belongs to", "Bundesautobahn 57", 0.0),  # numbers are exact
        ("Who made the S63B?", "S63A", 0.0),
        ("Romeo", "Rome", 0.0),  # so are short words
        ("The capital of Iraq is", "Iran", 0.0),
        ("Who is Karl?", "Carl", 0.0),  # and how a word begins
        ("When was the founding?", "of", 0.0),
        ("Bill Gates was born in", "Gates", 1 / 2),  # names that are words, too
        ("Will Smith plays", "Smith", 1 / 2),
        ("It rained. May Parker lives with", "Parker", 1 / 2),
        ("Fire Emblem was made by", "Emblem", 1 / 2),
        ("Twenty One Pilots, of", "Pilots", 1 / 3),
        ("Who Rome's founders were", "Rome", 1.0),  # words that name nothing
        ("What Toyota makes is", "Toyota", 1.0),
        ("Where Ireland lies is", "Ireland", 1.0),
        ("Does Chile have", "Chile", 1.0),
        ("Before Oslo, the capital was", "Oslo", 1.0),
        ("!!!", "!!!", 1.0),
        ("", "Rome", 0.0),
    ],
)
def test_how_much_of_a_name_a_subject_is(text: str, subject: str, share: float) -> None:
    assert share_of_name(text, subject) == pytest.approx(share)


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
