"""From queries to prompts and back: token ids, attention masks, padding on either side."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from megedit.lm.template import Template


class Prompts:
    """A tokenizer and the template of an adapter.

    Several threads may use one at a time: the padding settings of a tokenizer are shared, so it is locked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._lock = threading.RLock()

    def ids(self, queries: Iterable[str], template: Template | None = None) -> list[list[int]]:
        """Token ids of queries in a template; that of the adapter when none is given."""
        template = template or self.template
        return [self.encode(template.format(query)) for query in queries]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        with self._lock:
            ids: list[int] = self.tokenizer(prompt).input_ids
        return ids

    def answer_length(self, target: str) -> int:
        """Tokens of an answer with this target, without its end of text."""
        with self._lock:
            return len(self.tokenizer(self.template.answer(target), add_special_tokens=False).input_ids)

    def texts(self, input_ids: Tensor, mask: Tensor) -> list[str]:
        """Prompts (int64 (rows, columns)) as texts, without what the mask leaves out."""
        with self._lock:
            bos = self.tokenizer.bos_token if self.tokenizer("").input_ids == [self.tokenizer.bos_token_id] else ""
            texts = [str(self.tokenizer.decode(ids[own.bool()])) for ids, own in zip(input_ids, mask, strict=True)]
        return [text.removeprefix(bos or "") for text in texts]

    def query_of(self, text: str) -> str:
        """The bare query in a prompt."""
        return self.template.query_of(text)

    def in_template(self, text: str, query: str) -> bool:
        """True for a prompt in the adapter's template, or in the chat form of the model that the template is from."""
        if self.template.holds(text):
            return True
        with self._lock:  # a tokenizer may give a text back with other blanks
            again = self.tokenizer(self.template.format(query), add_special_tokens=False).input_ids
            return text == self.tokenizer.decode(again)


def texts_of(queries: Iterable[str], rows: int | None = None) -> list[str]:
    """Queries as a list. Raises TypeError unless they are texts, ValueError unless there are as many as rows."""
    if isinstance(queries, str):
        raise TypeError("queries must be a list of texts, one for each row, not one text")
    if not isinstance(queries, Iterable):
        raise TypeError(f"queries must be a list of texts, not {type(queries).__name__}")
    texts = list(queries)
    if wrong := [query for query in texts if not isinstance(query, str)]:
        raise TypeError(f"queries must be texts; one of them is {type(wrong[0]).__name__}")
    if rows is not None and len(texts) != rows:
        raise ValueError(f"{len(texts)} queries were given for {rows} rows")
    return texts


def prompt_ids(input_ids: Tensor | None, inputs: Tensor | None) -> Tensor:
    """The prompts of a call, by either name: int64 (rows, columns). Raises TypeError for anything else."""
    if input_ids is not None and inputs is not None:
        raise TypeError("inputs is another name of input_ids; give one of the two")
    ids = inputs if input_ids is None else input_ids
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        kind = f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(
            "input_ids must be a tensor (rows, columns) of token ids, as tokenizer(prompts, return_tensors='pt') "
            f"gives them, not {kind}; answer() takes plain questions"
        )
    if len(ids) and not ids.shape[1]:
        raise ValueError("a prompt must hold at least one token")
    return ids


def mask_of(input_ids: Tensor, pad_id: int, ends: set[int]) -> Tensor:
    """Guess the attention mask, int64 (rows, columns), of prompts that come without one.

    Padding is what stands before a prompt, and behind it where the padding token does not also end a turn.
    """
    content = (input_ids != pad_id).long()  # (rows, columns)
    mask = content.cummax(1).values
    return mask if pad_id in ends else mask * content.flip(1).cummax(1).values.flip(1)


def last_columns(mask: Tensor) -> Tensor:
    """The column of each row's last token that is not padding: int64 (rows,)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns * mask.bool()).amax(1)


def left_padded(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding behind each row, of int64 (rows, columns), before it; the mask goes along."""
    width = mask.shape[1]
    behind = width - 1 - last_columns(mask)  # (rows,)
    source = (torch.arange(width, device=mask.device) - behind[:, None]) % width  # (rows, columns)
    return input_ids.gather(1, source), mask.gather(1, source)


def cached_columns(cache: object) -> int:
    """The number of columns whose keys and values are in a cache; 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())  # type: ignore[attr-defined]
