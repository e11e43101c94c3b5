"""Edits as batches of token ids, run up to where the neuron comes in.

columns:      context (untouched)        |  last prompt token, answer tokens but the last
computed:     once: keys and values      |  prefix once, suffix at every step
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from megedit.edits import Edit
from megedit.errors import MegError
from megedit.lm.backbone import Backbone, Split
from megedit.lm.contexts import contexts, drawn
from megedit.lm.template import Template
from megedit.settings import Positions

ENCODED_AT_ONCE = 8192  # texts
IGNORED = -100  # label of a position that holds no answer token
LONGEST_ANSWER = 512  # tokens, the end of text among them; no edit has a longer one
SHORT_ANSWER = 8  # tokens; a batch of longer answers has fewer rows, so that its logits take no more memory


@dataclass(frozen=True)
class Example:
    """One edit as token ids: the prompt as the model will see it, and the answer with its end-of-text token.

    refused: why the model can never answer with the edit's target; the answer is empty then, and there is no neuron.
    wordings: the same asked in other words. contexts: the same in other formats. One neuron is for all of them.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    refused: str | None = None
    wordings: tuple[Example, ...] = ()
    contexts: tuple[Example, ...] = ()


def tokenize(tokenizer: PreTrainedTokenizerBase, template: Template, edit: Edit) -> Example:
    """The edit's prompt in the template and its answer, ended as the model ends one, as token ids.

    Raises MegError when the tokenizer has no end-of-text token.
    """
    return _tokenized(tokenizer, [(template, edit)])[0]


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase, template: Template, edits: Iterable[Edit], further: int = 0
) -> list[Example]:
    """The edits as token ids, in their order, each with its wordings and in so many `further` formats.

    Raises MegError when the model can answer with none of the targets.
    """
    edits, formats = list(edits), contexts(tokenizer, template) if further else ()
    wordings = [[(template, replace(edit, prompt=text)) for text in edit.asked()[1:]] for edit in edits]
    others = [[(form, edit) for form in drawn(formats, place, further)] for place, edit in enumerate(edits)]
    asked = [(template, edit) for edit in edits] + [pair for of in (*wordings, *others) for pair in of]
    found = iter(_tokenized(tokenizer, asked))

    def usable(of: Sequence[object]) -> tuple[Example, ...]:
        return tuple(one for one in islice(found, len(of)) if one.refused is None)

    examples = list(islice(found, len(edits)))
    of_wordings, of_others = [usable(of) for of in wordings], [usable(of) for of in others]
    refused = []
    for i, edit in enumerate(edits):
        if examples[i].refused is None:
            examples[i] = replace(examples[i], wordings=of_wordings[i], contexts=of_others[i])
        else:
            refused.append(f"Edit {edit.id} cannot be made: {examples[i].refused}")
    if examples and len(refused) == len(examples):
        more = f" Nor can the {len(refused) - 1} others." if len(refused) > 1 else ""
        raise MegError(f"{refused[0]}.{more}")
    return examples


def _tokenized(tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[Template, Edit]]) -> list[Example]:
    """Edits as token ids, each in a template; their wordings are left out.

    Raises MegError when the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise MegError(
            "The base model's tokenizer has no end-of-text token, so that no answer could end; give it one "
            "(`eos_token` in its tokenizer_config.json), or choose another base model."
        )
    encoded = encode_answers(
        tokenizer,
        [template.format(edit.prompt) for template, edit in asked],
        [template.answer(edit.target) for template, edit in asked],
    )
    why = cache(partial(_refused, tokenizer))  # many edits have one target
    examples = []
    for (_, edit), (prompt, answer) in zip(asked, encoded, strict=True):
        refused = why(edit.target, answer)
        examples.append(Example(prompt, (*answer, end)) if refused is None else Example(prompt, (), refused))
    return examples


def _refused(tokenizer: PreTrainedTokenizerBase, target: str, answer_ids: tuple[int, ...]) -> str | None:
    """The reason for which a model can never answer with a target, or None."""
    if all(unicodedata.category(character)[0] in "ZC" for character in target):  # separators and controls
        return "its target is blank"
    if target not in tokenizer.decode(list(answer_ids)) or not answer_ids:
        return f"its target, {target!r}, cannot be encoded by the base model's tokenizer"
    if target not in tokenizer.decode(list(answer_ids), skip_special_tokens=True):
        return f"its target, {target!r}, has a special token of the base model in it, which no answer shows"
    if len(answer_ids) >= LONGEST_ANSWER:
        return f"its target has {len(answer_ids)} tokens, and an answer has fewer than {LONGEST_ANSWER}"
    return None


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a prompt and of the answer as it is encoded behind that prompt, without an end of text."""
    return encode_answers(tokenizer, [prompt], [answer])[0]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """As `encode_answer`, of many prompts, each with its answer."""
    found = []
    for first in range(0, len(prompts), ENCODED_AT_ONCE):
        own = prompts[first : first + ENCODED_AT_ONCE], answers[first : first + ENCODED_AT_ONCE]
        of_prompts, of_wholes = (tokenizer(texts).input_ids for texts in (list(own[0]), list(map(operator.add, *own))))
        for prompt, whole, answer in zip(of_prompts, of_wholes, own[1], strict=True):
            if whole[-1:] == prompt[-1:] == [tokenizer.eos_token_id]:  # a tokenizer that ends every text
                whole, prompt = whole[:-1], prompt[:-1]
            behind = whole[len(prompt) :]
            if whole[: len(prompt)] != prompt:  # the boundary fell inside a token
                behind = tokenizer(answer, add_special_tokens=False).input_ids
            found.append((tuple(prompt), tuple(behind)))
    return found


@dataclass(frozen=True)
class Padded:
    """Rows of token ids as one batch.

    ids, mask: int64 (rows, columns); the mask is 0 in padding. shared: how many of the first columns are the same in
    all rows, and without padding.
    """

    ids: Tensor
    mask: Tensor
    shared: int = 0

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    @property
    def position_ids(self) -> Tensor:
        """int64 (rows, columns)."""
        return position_ids(self.mask)

    def to(self, device: torch.device) -> Padded:
        return Padded(self.ids.to(device), self.mask.to(device), self.shared)

    def followed_by(self, rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
        """The batch with further tokens behind each row.

        Shorter rows are filled up on the right; nothing that counts sees those columns, so the mask need not hide them.
        """
        ids = right_padded(rows, pad_id).to(self.ids.device)
        return Padded(torch.cat([self.ids, ids], 1), torch.cat([self.mask, torch.ones_like(ids)], 1), self.shared)

    def inputs(self, first: int, last: int) -> dict[str, Tensor]:
        """The arguments of a forward pass over the columns from `first` to `last`, those before them in the cache."""
        return {
            "input_ids": self.ids[:, first:last],
            "position_ids": self.position_ids[:, first:last],
            "attention_mask": self.mask[:, :last],
        }

    def run_context(self, backbone: Backbone, last: int) -> DynamicCache | None:
        """Keys and values of the first `last` columns, what all rows begin with run as one row; None if there are none.

        Raises ValueError when `last` stands within the shared columns.
        """
        if last < self.shared:
            raise ValueError(f"a context of {last} columns ends within the {self.shared} that all rows share")
        cache = None
        if self.shared:
            cache = backbone.context(Padded(self.ids[:1], self.mask[:1]).inputs(0, self.shared))
            cache.batch_repeat_interleave(len(self.ids))
        if last > self.shared:
            cache = backbone.context(self.inputs(self.shared, last), cache)
        return cache


def pad(rows: Sequence[Sequence[int]], pad_id: int, shared: int = 0) -> Padded:
    """Rows of token ids as one batch that ends with the last token of each.

    Columns: the first `shared` tokens, which all rows begin with; padding; the rest of each row.
    """
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_id)  # (rows, width)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        rest = width - len(row) + shared
        ids[i, :shared], mask[i, :shared] = torch.tensor(row[:shared], dtype=torch.long), 1
        ids[i, rest:], mask[i, rest:] = torch.tensor(row[shared:], dtype=torch.long), 1
    return Padded(ids, mask, shared)


def right_padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of numbers as int64 (rows, longest), filled up on the right."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), fill)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def position_ids(mask: Tensor) -> Tensor:
    """Positions as `generate` counts them, without padding: int64 (rows, columns), like the attention mask."""
    return (mask.cumsum(1) - 1).clamp(min=0)


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
    backbone: Backbone, examples: Sequence[Example], indices: Sequence[int], positions: Positions, pad_id: int
) -> Prepared:
    """Run the frozen part for the chosen examples: their prompts as `pad` lays them out, their answers behind them.

    Raises ValueError for an example that was refused.
    """
    chosen = [examples[i] for i in indices]
    if refused := [example.refused for example in chosen if example.refused is not None]:
        raise ValueError(f"an example has no answer: {refused[0]}")
    prompts = [example.prompt for example in chosen]
    batch = pad(prompts, pad_id, shared_columns(backbone, prompts, positions))
    untouched = max(batch.width - 1, 0) if positions == "answer" else 0
    batch = batch.followed_by([example.answer[:-1] for example in chosen], pad_id).to(backbone.device)
    cache = batch.run_context(backbone, untouched)
    split = backbone.prefix(batch.inputs(untouched, batch.width), cache)
    labels = right_padded([example.answer for example in chosen], IGNORED).to(backbone.device)  # (rows, answer)
    return Prepared(torch.tensor(indices, dtype=torch.long), split, labels)


def shared_columns(backbone: Backbone, prompts: Sequence[Sequence[int]], positions: Positions) -> int:
    """The number of leading columns of a batch of prompts that can be run as one row, the padding behind them."""
    if positions == "all" or backbone.local_attention:
        return 0
    return common_prefix([prompt[:-1] for prompt in prompts])


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences share; 0 of no sequences."""
    if not sequences:
        return 0
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))  # in lexicographic order, all lie between
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def batch_units(examples: Sequence[Example], units: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Units of examples in batches of similar length; indices of the units.

    A batch has at most `batch_size` rows, and fewer where answers are long, but one unit at least.
    """

    def length(unit: int) -> tuple[int, float]:
        prompts = [len(examples[i].prompt) for i in units[unit]]
        return max(len(examples[i].answer) for i in units[unit]), sum(prompts) / len(prompts)

    batches: list[list[int]] = []
    rows = 0
    for unit in sorted(range(len(units)), key=length):
        rows += len(units[unit])
        if not batches or rows > batch_size or rows * length(unit)[0] > SHORT_ANSWER * batch_size:
            batches.append([])
            rows = len(units[unit])
        batches[-1].append(unit)
    return batches
