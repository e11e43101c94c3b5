"""The text of an answer as its tokens come."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from megedit.serve.text import AnswerText
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text(alphabet="ab€ü c", max_size=30), st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=3))
@example("aba", ["b", "aba"])
def test_the_text_is_cut_where_a_stop_string_begins(text: str, stop: list[str]) -> None:
    """Of several stop strings by the one that is whole first."""
    answer, shown = AnswerText(TOKENIZER, tuple(stop)), ""
    for token in TOKENIZER(text).input_ids:
        shown += answer.add(token)
        assert text.startswith(shown)
        if answer.stopped:
            break
    shown += answer.rest()
    found = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    assert shown == (text[: min(found)[1]] if found else text)
