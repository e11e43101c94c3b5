"""Edits as batches of token ids, run up to where the neuron comes in.

columns:      context (untouched)        |  last prompt token, answer tokens but the last
computed:     once: keys and values      |  prefix once, suffix at every step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from megedit.edits.edit_set import Edit
from megedit.errors import MegError
from megedit.lm.backbone import Backbone, Split
from megedit.lm.template import Template

IGNORED = -100  # label of a position that holds no answer token
SHORT_ANSWER = 8  # tokens; a batch of longer answers has fewer rows, so that its logits take no more memory

Span = Literal["answer", "all"]


@dataclass(frozen=True)
class Example:
    """One edit as token ids: the prompt as the model will see it, and the answer with its end-of-text token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def tokenize(tokenizer: PreTrainedTokenizerBase, template: Template, edit: Edit) -> Example:
    """The edit's prompt in the template and its answer, ended as the model ends one, as token ids.

    Raises MegError when the tokenizer cannot encode the text.
    """
    prompt_ids, answer_ids = encode_answer(tokenizer, template.format(edit.prompt), template.answer(edit.target))
    if edit.target not in tokenizer.decode(answer_ids) or not answer_ids:
        raise MegError(
            f"The target of edit {edit.id}, {edit.target!r}, cannot be encoded by the base model's tokenizer."
        )
    return Example(tuple(prompt_ids), (*answer_ids, tokenizer.eos_token_id))


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of the answer as it is encoded behind that prompt, without an end of text."""
    prompt_ids = tokenizer(prompt).input_ids
    whole = tokenizer(prompt + answer).input_ids
    if whole[-1] == tokenizer.eos_token_id:  # a tokenizer that ends every text
        whole, prompt_ids = whole[:-1], prompt_ids[:-1]
    if whole[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole[len(prompt_ids) :]
    # the boundary fell inside a token
    return prompt_ids, tokenizer(answer, add_special_tokens=False).input_ids


@dataclass(frozen=True)
class Prepared:
    """A batch of examples up to the point where the neuron comes in. labels: int64 (rows, answer positions)."""

    indices: Tensor  # int64 (rows,), on the CPU: which examples these rows are
    split: Split
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> Prepared:
        return Prepared(self.indices[rows.cpu()], self.split[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)


def prepare(
    backbone: Backbone, examples: Sequence[Example], indices: Sequence[int], span: Span, pad_id: int
) -> Prepared:
    """Run the frozen part for the chosen examples.

    Columns: the tokens all prompts begin with (the template, run as one row), padding, the rest of each prompt, its
    answer, padding. Where attention is local, the padding stands before all of them.
    """
    chosen = [examples[i] for i in indices]
    shared = shared_columns(backbone, [e.prompt for e in chosen], span)
    width = max(len(e.prompt) for e in chosen)
    answer_width = max(len(e.answer) for e in chosen)
    rows = len(chosen)
    ids = torch.full((rows, width + answer_width - 1), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full((rows, answer_width), IGNORED)
    for row, example in enumerate(chosen):
        text = example.prompt + example.answer[:-1]
        first = width - len(example.prompt) + shared
        ids[row, :shared] = torch.tensor(text[:shared])
        ids[row, first : first + len(text) - shared] = torch.tensor(text[shared:])
        mask[row, :shared] = 1
        mask[row, first:] = 1  # what is right of a shorter answer is seen by nothing that counts
        labels[row, : len(example.answer)] = torch.tensor(example.answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids, mask, positions, labels = (t.to(backbone.device) for t in (ids, mask, positions, labels))

    def block(first: int, last: int, rows: int = rows) -> dict[str, Tensor]:
        columns = slice(first, last)
        return {
            "input_ids": ids[:rows, columns],
            "position_ids": positions[:rows, columns],
            "attention_mask": mask[:rows, :last],
        }

    cache = None
    untouched = width - 1 if span == "answer" else 0
    if shared:
        cache = backbone.context(block(0, shared, rows=1))
        cache.batch_repeat_interleave(rows)
    if untouched > shared:
        cache = backbone.context(block(shared, untouched), cache)
    return Prepared(torch.tensor(indices), backbone.prefix(block(untouched, ids.shape[1]), cache), labels)


def shared_columns(backbone: Backbone, prompts: Sequence[Sequence[int]], span: Span) -> int:
    """How many leading columns of a batch of prompts can be run as one row; the padding then stands behind them."""
    if span == "all" or backbone.local_attention:
        return 0
    return common_prefix([prompt[:-1] for prompt in prompts])


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))  # in lexicographic order, all lie between
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def batch_units(examples: Sequence[Example], units: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Units of examples (each one's answers are equally long) in batches of similar length; indices of the units.

    A batch has at most `batch_size` rows, and fewer where answers are long, but one unit at least.
    """

    def length(unit: int) -> tuple[int, float]:
        prompts = [len(examples[i].prompt) for i in units[unit]]
        return len(examples[units[unit][0]].answer), sum(prompts) / len(prompts)

    batches: list[list[int]] = []
    rows = 0
    for unit in sorted(range(len(units)), key=length):
        rows += len(units[unit])
        if not batches or rows > batch_size or rows * length(unit)[0] > SHORT_ANSWER * batch_size:
            batches.append([])
            rows = len(units[unit])
        batches[-1].append(unit)
    return batches
