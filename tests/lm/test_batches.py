"""Rows of tokens as batches: where the padding stands, and contexts that are run once."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from megedit.edits import Edit
from megedit.errors import MegError
from megedit.lm import batches
from megedit.lm.backbone import Backbone
from megedit.lm.batches import (
    LONGEST_ANSWER,
    Example,
    Padded,
    common_prefix,
    encode_answer,
    encode_answers,
    pad,
    position_ids,
    prepare,
    tokenize,
    tokenize_all,
)
from megedit.lm.template import Template
from tests.tiny import CHATML, LLAMA_2, VOCAB_SIZE, tiny_model, tiny_tokenizer, words_only

PAD = 2
ROWS = ((5, 6, 7, 8), (5, 6, 9), (5, 6, 4, 3, 9, 8))


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(tiny_model("llama"), 1)


def states(cache: DynamicCache | None) -> list[Tensor]:
    assert cache is not None
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # type: ignore[union-attr,misc]


def test_padding_on_the_left() -> None:
    batch = pad(ROWS, PAD)
    assert batch.ids.tolist() == [[2, 2, 5, 6, 7, 8], [2, 2, 2, 5, 6, 9], [5, 6, 4, 3, 9, 8]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [1] * 6]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_padding_behind_what_all_rows_begin_with() -> None:
    batch = pad(ROWS, PAD, shared=2)
    assert batch.ids.tolist() == [[5, 6, 2, 2, 7, 8], [5, 6, 2, 2, 2, 9], [5, 6, 4, 3, 9, 8]]
    assert batch.mask.tolist() == [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1], [1] * 6]
    assert batch.position_ids[:, -1].tolist() == [len(row) - 1 for row in ROWS]


def test_tokens_behind_each_row() -> None:
    batch = pad([(5,), (6, 7)], PAD).followed_by([(8, 9), ()], PAD)
    assert batch.ids.tolist() == [[2, 5, 8, 9], [6, 7, 2, 2]]
    assert batch.mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_no_rows_and_empty_rows() -> None:
    assert pad([], PAD).ids.shape == pad([], PAD).followed_by([], PAD).position_ids.shape == (0, 0)
    assert pad([(), (7,)], PAD).ids.tolist() == [[2], [7]]
    assert pad([(), (7,)], PAD).mask.tolist() == [[0], [1]]


def test_positions_do_not_count_padding() -> None:
    assert position_ids(torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("last", [2, 4, 5])
def test_a_context_is_that_of_each_row_alone(backbone: Backbone, shared: int, last: int) -> None:
    batch = pad(ROWS, PAD, shared)
    cache = batch.run_context(backbone, last)
    assert cache is not None and cache.get_seq_length() == last
    for i, row in enumerate(ROWS):
        columns = batch.mask[i, :last].bool()
        if not columns.any():
            continue
        alone = states(pad([row], PAD).run_context(backbone, int(columns.sum())))
        for together, lone in zip(states(cache), alone, strict=True):
            # float32 rounding: the same sums, over blocks of other shapes
            torch.testing.assert_close(together[i, :, columns], lone[0], rtol=1e-4, atol=1e-5)


def test_what_all_rows_share_is_run_as_one_row(backbone: Backbone) -> None:
    seen: list[tuple[int, ...]] = []
    hook = backbone.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    pad(ROWS, PAD, shared=2).run_context(backbone, 5)
    pad(ROWS, PAD, shared=2).run_context(backbone, 2)
    hook.remove()
    assert seen == [(1, 2), (3, 3), (1, 2)]


def test_a_context_of_no_columns(backbone: Backbone) -> None:
    assert pad(ROWS, PAD).run_context(backbone, 0) is None
    assert pad([], PAD).run_context(backbone, 0) is None
    with pytest.raises(ValueError, match="ends within the 2 that all rows share"):
        pad(ROWS, PAD, shared=2).run_context(backbone, 1)


def test_a_block_of_columns() -> None:
    batch = Padded(torch.arange(3, 9)[None] % VOCAB_SIZE, torch.ones(1, 6, dtype=torch.long))
    block = batch.inputs(2, 4)
    assert block["input_ids"].tolist() == [[5, 6]] and block["position_ids"].tolist() == [[2, 3]]
    assert block["attention_mask"].tolist() == [[1, 1, 1, 1]]


# ---------------------------------------------------------------------------------------------------
# Token ids


def test_the_answer_is_encoded_behind_its_prompt() -> None:
    tokenizer = tiny_tokenizer(LLAMA_2, add_bos=True)
    template = Template.for_tokenizer(tokenizer)
    example = tokenize(tokenizer, template, Edit("1", "Where?", "Rome"))
    text = tokenizer.decode([*example.prompt, *example.answer])
    assert text == f"<s>{template.format('Where?')} Rome.</s>"
    assert list(example.prompt) == tokenizer(template.format("Where?")).input_ids
    assert example.answer[-1] == tokenizer.eos_token_id


def test_a_boundary_inside_a_token() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer(" capital").input_ids) == 1
    prompt, answer = encode_answer(tokenizer, "The cap", "ital")
    assert tokenizer.decode(list(prompt)) == "The cap" and tokenizer.decode(list(answer)) == "ital"


def test_many_texts_are_encoded_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ENCODED_AT_ONCE", 2)
    tokenizer = tiny_tokenizer()
    prompts, answers = ["The cap", "Where?", "Who is it?"], ["ital", " Rome", ""]
    alone = [encode_answer(tokenizer, *pair) for pair in zip(prompts, answers, strict=True)]
    assert encode_answers(tokenizer, prompts, answers) == alone
    assert encode_answers(tokenizer, [], []) == []


def test_all_edits_have_their_own_wordings_and_contexts() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    template = Template.for_tokenizer(tokenizer)
    edits = [Edit("1", "Where?", "Rome"), Edit("2", "Who is it?", "Ada", wordings=("Who?", "Who then?"))]
    plain, worded = tokenize_all(tokenizer, template, edits, 2)
    assert plain.wordings == () and len(plain.contexts) == len(worded.contexts) == 2
    assert [one.prompt for one in worded.wordings] == [
        tokenize(tokenizer, template, Edit("2", text, "Ada")).prompt for text in ("Who?", "Who then?")
    ]
    assert plain == tokenize_all(tokenizer, template, edits[:1], 2)[0]


def test_an_answer_that_ends_in_the_end_of_text() -> None:
    tokenizer = tiny_tokenizer()
    prompt, answer = encode_answer(tokenizer, "Where?", " Rome</s>")
    assert tokenizer.decode(list(prompt)) == "Where?" and tokenizer.decode(list(answer)) == " Rome</s>"


def refused(target: str, prompt: str = "Where?") -> str | None:
    tokenizer = tiny_tokenizer(CHATML)
    example = tokenize(tokenizer, Template.for_tokenizer(tokenizer), Edit("1", prompt, target))
    assert (example.refused is None) == bool(example.answer)
    return example.refused


def test_a_target_that_cannot_be_encoded() -> None:
    tokenizer, template = words_only(), Template("{query}", answer_prefix=" ")
    assert tokenize(tokenizer, template, Edit("1", "Who is ?", "Ada")) == Example((2, 3, 4), (5, 1))
    example = tokenize(tokenizer, template, Edit("2", "Who is ?", "Grace"))
    assert example == Example((2, 3, 4), (), "its target, 'Grace', cannot be encoded by the base model's tokenizer")


@pytest.mark.parametrize("target", [" ", "\t \n", "\u200b", "\u00a0\u2003"])
def test_a_blank_target_is_refused(target: str) -> None:
    assert refused(target) == "its target is blank"


@pytest.mark.parametrize("target", ["</s>", "<pad>", "Rome</s>", "<s>Rome"])
def test_a_target_with_special_tokens_is_refused(target: str) -> None:
    assert (
        refused(target) == f"its target, {target!r}, has a special token of the base model in it, which no answer shows"
    )


def test_a_target_longer_than_any_answer_is_refused() -> None:
    reason = refused("a b" * LONGEST_ANSWER)
    assert reason is not None and "tokens, and an answer has fewer than 512" in reason


@pytest.mark.parametrize("target", ["Rome", "8443", "Rome.", "-", "\u6771\u4eac", "a\nb", "x</ s>"])
def test_other_targets_are_not_refused(target: str) -> None:
    assert refused(target) is None


def test_no_target_that_can_be_answered() -> None:
    tokenizer, template = tiny_tokenizer(), Template("{query}", answer_prefix=" ")
    good, bad = Edit("1", "Who?", "Ada"), Edit("2", "Who?", "</s>")
    assert [example.refused is None for example in tokenize_all(tokenizer, template, [good, bad])] == [True, False]
    assert tokenize_all(tokenizer, template, []) == []
    with pytest.raises(MegError, match=r"^Edit 2 cannot be made: its target, '</s>', has a special .* shows\.$"):
        tokenize_all(tokenizer, template, [bad])
    with pytest.raises(MegError, match=r"Edit 2 cannot be made: .*\. Nor can the 1 others\.$"):
        tokenize_all(tokenizer, template, [bad, bad])


def test_a_tokenizer_without_an_end_of_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(MegError, match=r"has no end-of-text token.*`eos_token` in its tokenizer_config\.json"):
        tokenize(tokenizer, Template("{query}"), Edit("1", "Who?", "Ada"))


def test_a_refused_example_is_not_prepared(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="an example has no answer: its target is blank"):
        prepare(backbone, [Example((5, 6), (7, 1)), Example((5,), (), "its target is blank")], [0, 1], "answer", PAD)


@pytest.mark.parametrize(
    ("sequences", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4), (1, 2)], 2),
        ([(1, 2, 3)], 3),
        ([(5, 1), (1, 5)], 0),
        ([(1, 2), ()], 0),
        ([], 0),
        ([(1, 9, 9), (1, 2, 3), (1, 9, 9)], 1),
    ],
)
def test_common_prefix(sequences: list[tuple[int, ...]], shared: int) -> None:
    assert common_prefix(sequences) == shared
