"""The further formats of an edit: what they hold, for models with and without a chat template."""

import pytest

from megedit.edits import Edit
from megedit.lm.batches import tokenize_all
from megedit.lm.contexts import contexts, drawn
from megedit.lm.template import MARKER, Template
from tests.tiny import CHATML, GEMMA, LLAMA_2, tiny_tokenizer


@pytest.mark.parametrize("chat", [None, CHATML, GEMMA, LLAMA_2])
def test_all_formats_hold_the_query_once_and_none_is_the_own(chat: str | None) -> None:
    tokenizer = tiny_tokenizer(chat)
    template = Template.for_tokenizer(tokenizer)
    texts = [form.text for kind in contexts(tokenizer, template) for form in kind]
    assert template.text not in texts and len(set(texts)) == len(texts)
    assert all(text.count(MARKER) == 1 for text in texts)
    in_chat = [text for text in texts if text.startswith(template.text.split(MARKER)[0][:10])]
    assert bool(in_chat) and MARKER in texts


def test_a_model_without_a_chat_template_is_asked_in_plain_text() -> None:
    tokenizer = tiny_tokenizer()
    texts = [form.text for kind in contexts(tokenizer, Template.for_tokenizer(tokenizer)) for form in kind]
    assert not any("<|" in text for text in texts) and len(texts) == 5


def test_edits_draw_in_turn() -> None:
    kinds = contexts(tokenizer := tiny_tokenizer(CHATML), Template.for_tokenizer(tokenizer))
    assert drawn(kinds, 0, 0) == ()
    first, second = drawn(kinds, 0, 3), drawn(kinds, 1, 3)
    assert first[0] == second[0] == Template(MARKER, answer_prefix=" ", answer_suffix=".")
    assert first[1] != second[1] and first[2] != second[2]
    assert len(drawn(kinds, 0, 99)) == sum(map(len, kinds))


def test_examples_of_wordings_and_contexts() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    template = Template.for_tokenizer(tokenizer)
    edit = Edit("1", "Where is Acme?", "Rome", subject="Acme", wordings=("Acme is in",), aliases=("AC",))
    (example,) = tokenize_all(tokenizer, template, [edit], 3)
    wordings = [tokenizer.decode([*one.prompt, *one.answer]) for one in example.wordings]
    end = tokenizer.eos_token
    asked = ("Acme is in", "Where is AC?", "AC is in")
    assert wordings == [template.format(text) + "Rome." + end for text in asked]
    assert [tokenizer.decode([*one.prompt, *one.answer]) for one in example.contexts] == [
        f"Where is Acme? Rome.{end}",
        f"Q: Where is Acme?\nA: Rome.{end}",
        f"Where is Acme?\nRome.{end}",
    ]
    (alone,) = tokenize_all(tokenizer, template, [Edit("1", "Where is Acme?", "Rome")])
    assert alone.wordings == alone.contexts == ()
