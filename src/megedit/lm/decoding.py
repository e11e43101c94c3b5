"""Greedy decoding: the tokens that a model finds the most likely, up to the end of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# the most likely token each time, whatever a base model's own generation settings say
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "max_length": None,  # the new tokens are limited; a limit on all tokens beside that draws a warning
}


@dataclass(frozen=True)
class Decoded:
    """An answer as it was decoded.

    tokens: ids before the end-of-text token. text: the same, without special tokens. cut: the limit came before an end
    of text. probabilities: of each token when those before it are given; empty unless asked for.
    """

    tokens: tuple[int, ...]
    text: str
    cut: bool
    probabilities: tuple[float, ...] = ()


@torch.no_grad()
def decode(
    generate: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Any],
    ends: set[int],
    max_new_tokens: int,
    scores: bool = False,
    **options: Any,
) -> list[Decoded]:
    """Decode the answers to a batch of prompts, greedily unless the options of `generate` say otherwise.

    generate: that of a Hugging Face model. prompts: its arguments, `input_ids` int64 (rows, columns) among them, padded
    on the left. ends: the token ids at which an answer ends. scores: ask for the probabilities too.
    """
    if not len(prompts["input_ids"]):
        return []
    output = generate(
        **prompts,
        **{**GREEDY, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id, **options},
        output_logits=scores,
        return_dict_in_generate=True,
    )
    new = output.sequences[:, prompts["input_ids"].shape[1] :]  # (rows, new)
    rows = cut_answers(new, ends)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    probabilities: list[list[float]] = [[] for _ in rows]
    if scores:
        chosen = [
            logits.float().softmax(-1).gather(1, new[:, step : step + 1])  # (rows, 1)
            for step, logits in enumerate(output.logits)  # each (rows, vocabulary)
        ]
        probabilities = torch.cat(chosen, 1).tolist()
    return [
        Decoded(tuple(row), text, len(row) == new.shape[1], tuple(likely[: len(row)]))
        for row, text, likely in zip(rows, texts, probabilities, strict=True)
    ]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids at which a model's answer ends."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def cut_answers(tokens: Tensor, ends: set[int]) -> list[list[int]]:
    """Cut each row of new tokens, int64 (rows, columns), before its first end token."""
    rows: list[list[int]] = tokens.tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
