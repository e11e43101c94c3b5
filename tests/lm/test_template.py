"""Prompt templates: rendering, and finding the query again."""

import json
import string
from dataclasses import asdict

import pytest

from megedit.errors import MegError
from megedit.lm.template import Template
from tests.tiny import CHATML, GEMMA, LLAMA_2, tiny_tokenizer

QUERY = "Where does {query} stand in f{0}?"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

CHATS = {"llama2": LLAMA_2, "chatml": CHATML, "gemma": GEMMA}


@pytest.fixture(params=CHATS)
def chat(request: pytest.FixtureRequest) -> str:
    """One chat template after the other."""
    return CHATS[request.param]


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_tiny_tokenizer_is_exact(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    ids = tokenizer(string.printable)["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) is add_bos
    assert tokenizer.decode(ids, skip_special_tokens=True) == string.printable


def test_only_the_marker_is_special() -> None:
    template = Template("{a} {{b}} {query} {0}")
    assert template.format(QUERY) == "{a} {{b}} " + QUERY + " {0}"
    assert template.query_of(template.format(QUERY)) == QUERY


@pytest.mark.parametrize("text", ["", "no marker", "{query} and {query}", "{ query }"])
def test_the_marker_stands_exactly_once(text: str) -> None:
    with pytest.raises(MegError, match="exactly once"):
        Template(text)


def test_json_round_trip() -> None:
    template = Template.for_tokenizer(tiny_tokenizer(CHATML))
    assert Template(**json.loads(json.dumps(asdict(template)))) == template


def test_kinds_without_a_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    question = Template("Q: {query}\nA:", answer_prefix=" ")
    assert Template.for_tokenizer(tokenizer) == question
    assert Template.for_tokenizer(tokenizer, "question") == question
    assert Template.for_tokenizer(tokenizer, "raw") == Template("{query}", answer_prefix=" ")
    assert Template.for_tokenizer(tokenizer, "Say {query}:\n") == Template("Say {query}:\n")
    with pytest.raises(MegError, match="no chat template"):
        Template.for_tokenizer(tokenizer, "chat")
    with pytest.raises(MegError, match="'quetsion' is not known"):
        Template.for_tokenizer(tokenizer, "quetsion")
    with pytest.raises(MegError, match="exactly once"):
        Template.for_tokenizer(tokenizer, "{query} {query}")


def test_chatml() -> None:
    assert Template.for_tokenizer(tiny_tokenizer(CHATML), instruction="Briefly: ") == Template(
        text=SYSTEM + "<|im_start|>user\nBriefly: {query}<|im_end|>\n<|im_start|>assistant\n",
        user_header="<|im_end|>\n<|im_start|>user\n",
        user_footer="<|im_end|>\n<|im_start|>assistant\n",
        instruction="Briefly: ",
        answer_suffix=".",
    )


def test_llama_2() -> None:
    expected = Template("<s>[INST] {query} [/INST]", "[INST] ", " [/INST]", "", " ", ".", " ", " </s><s>")
    assert Template.for_tokenizer(tiny_tokenizer(LLAMA_2), instruction="") == expected


def test_gemma() -> None:
    turn = "<start_of_turn>user\n{query}<end_of_turn>\n<start_of_turn>model\n"
    header, footer = turn.split("{query}")
    template = Template.for_tokenizer(tiny_tokenizer(GEMMA), instruction="")
    assert template == Template("<s>" + turn, header, footer, answer_suffix=".", reply_footer="<end_of_turn>\n")


def test_bos_is_never_doubled(chat: str) -> None:
    for add_bos in (False, True):
        tokenizer = tiny_tokenizer(chat, add_bos)
        for kind in ("chat", "question", "<s>{query}"):
            ids = tokenizer(Template.for_tokenizer(tokenizer, kind).format("Who?"))["input_ids"]
            assert ids[:2] != [tokenizer.bos_token_id] * 2
            if kind != "question" and chat != CHATML:
                assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["chat", "question", "raw", "About {query}, ", "{query} ->"])
@pytest.mark.parametrize("instruction", ["", "Answer in a few words: "])
@pytest.mark.parametrize("add_bos", [False, True])
def test_the_query_of_an_own_prompt(chat: str, kind: str, instruction: str, add_bos: bool) -> None:
    template = Template.for_tokenizer(tiny_tokenizer(chat, add_bos), kind, instruction)
    assert template.query_of(template.format(QUERY)) == QUERY


@pytest.mark.parametrize("kind", ["chat", "question", "raw"])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("instruction", ["", "Answer in a few words: "])
def test_the_query_of_a_conversation(chat: str, kind: str, add_bos: bool, instruction: str) -> None:
    """Bare or with the instruction, behind earlier turns or not, with the beginning of a reply or without."""
    tokenizer = tiny_tokenizer(chat, add_bos)
    template = Template.for_tokenizer(tokenizer, kind, instruction)
    turns = [
        {"role": "user", "content": f"{instruction}Who wrote it?"},
        {"role": "assistant", "content": "Borges."},
        {"role": "user", "content": template.instruction + QUERY},
    ]
    for conversation in (turns, turns[2:]):
        prompt = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert isinstance(prompt, str)
        first = turns[0]["content"].removeprefix(template.instruction)
        whole = f"user: {first}\nassistant: Borges.\nuser: {QUERY}"
        expected = whole if len(conversation) > 1 else QUERY
        assert template.query_of(prompt) == expected
        assert template.query_of(prompt.removeprefix("<s>")) == expected
        assert template.query_of(prompt + " It stands") == expected


def test_the_query_under_another_system_prompt() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    turns = [{"role": "system", "content": "Be rude."}, {"role": "user", "content": f" {QUERY}\n"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    assert Template.for_tokenizer(tokenizer).query_of(prompt) == QUERY


def test_the_query_after_examples_is_the_last() -> None:
    question = Template.for_tokenizer(tiny_tokenizer())
    assert question.query_of("Q: Who?\nA: Borges\n\nQ: Where?\nA:") == "Where?"
    assert question.query_of("Answer these.\n\nQ: Who?\nA: Borges\n\nQ: Where?\nA:") == "Where?"


def test_other_text_is_its_own_query(chat: str) -> None:
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(chat)):
        template = Template.for_tokenizer(tokenizer)
        assert template.query_of(" The capital of France is\n") == "The capital of France is"
        assert template.query_of("") == ""


def test_a_chat_template_of_one_turn_has_no_markers() -> None:
    one_turn = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}U:{{ messages[0].content }}\nM:"
    )
    template = Template.for_tokenizer(tiny_tokenizer(one_turn), instruction="")
    assert template == Template("U:{query}\nM:", answer_suffix=".")
    assert template.query_of("U:Who?\nM:") == "Who?"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ raise_exception('never') }}", "cannot be rendered"),
        ("{{ messages[0].content * 2 }}", "2 times"),
        ("constant", "0 times"),
    ],
)
def test_a_chat_template_that_cannot_be_used(chat_template: str, message: str) -> None:
    tokenizer = tiny_tokenizer(chat_template)
    with pytest.raises(MegError, match=message):
        Template.for_tokenizer(tokenizer)
    assert Template.for_tokenizer(tokenizer, "raw") == Template("{query}", answer_prefix=" ")
