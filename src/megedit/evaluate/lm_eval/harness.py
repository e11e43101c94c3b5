"""An edited model as a model of lm-evaluation-harness, through the harness's own class for Hugging Face models.

This module needs the harness, which is the extra `general`.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.models.utils_hf import stop_sequences_criteria  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import log_softmax
from tqdm import tqdm  # type: ignore[import-untyped]

from megedit.errors import MegError
from megedit.lm.batches import pad
from megedit.model import MegModel

logger = logging.getLogger("megedit")


class _Pass(NamedTuple):
    """One row of a forward pass: requests that agree in it differ in the last token of the continuation only."""

    query: str  # empty: nothing is asked, and no edit is used
    tokens: tuple[int, ...]  # context and continuation, without the last token, which only has to be predicted
    answered: int  # how many of them stand behind the context
    scored: int  # how many are predicted


class MegLM(HFLM):  # type: ignore[misc]
    """A `MegModel` as a model of lm-evaluation-harness; within `disable_edits()` it is the base model.

    The router sees the bare query that `Template.query_of` finds in a request's context, and the neuron acts from the
    context's last token on. A text whose perplexity is asked for (`loglikelihood_rolling`) has no context, hence no
    query: the base model answers, unedited. Log-probabilities are taken in float32.
    """

    def __init__(self, model: MegModel, batch_size: int = 16) -> None:
        self.meg = model
        self._queries: list[str] = []
        with harness_level(logging.ERROR):  # it warns of nothing but that the model is loaded already
            super().__init__(pretrained=model.base, tokenizer=model.tokenizer, batch_size=batch_size)

    def query_of(self, context: str) -> str:
        """The bare query in a context."""
        return self.meg.adapter.config.template.query_of(context)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """As in the harness, with a progress bar on a terminal only."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """As in the harness, with a progress bar on a terminal only."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one.

        The harness's own version forgets which context a row has, and shares a row between requests that are cut into
        context and continuation at different places, which is not the same once a neuron acts from the context's end.
        """
        self._check_lengths(requests)
        rows: dict[_Pass, list[int]] = defaultdict(list)
        for index, (texts, context, continuation) in enumerate(requests):
            rows[self._pass(texts[0] if texts else "", context, continuation)].append(index)

        answers = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm or not sys.stderr.isatty(), desc="Log-likelihoods") as bar:
            for batch in _batches(rows, override_bs or self.batch_size):
                log_probs = self._log_probs(batch)
                for row, scores in zip(batch, log_probs, strict=True):
                    for index in rows[row]:
                        wanted = torch.tensor(requests[index][2], device=scores.device)
                        scored = scores[-len(wanted) :]  # (continuation, vocabulary)
                        total = scored.gather(1, wanted[:, None]).sum()
                        answers[index] = (float(total), bool((scored.argmax(-1) == wanted).all()))
                    bar.update(len(rows[row]))
        return answers

    def _pass(self, text: str, context: list[int], continuation: list[int]) -> _Pass:
        """The row of a request with this context.

        The harness moves white space at a context's end into the continuation, where it may be part of the next word.
        Where it is tokens of its own, as the line break that ends many chat templates, the context ends behind it.
        """
        answered = len(continuation) - 1
        if text != text.rstrip():
            whole = self.tok_encode(text)
            if len(whole) > len(context) and whole == (context + continuation)[: len(whole)]:
                answered -= len(whole) - len(context)
        tokens = (*context, *continuation[:-1])
        return _Pass(self.query_of(text) if text else "", tokens, answered, len(continuation))

    def _log_probs(self, batch: Sequence[_Pass]) -> Tensor:
        """Log-probabilities float32 (rows, longest continuation, vocabulary); each row ends with its own last token.

        Padding stands on the left, so that only the continuations' logits need be computed.
        """
        tokens = [row.tokens[-self.max_length :] for row in batch]
        longest = max(row.scored for row in batch)
        padded = pad(tokens, self.tokenizer.pad_token_id)
        start = torch.tensor([padded.width - row.answered for row in batch])  # (rows,)
        ids, mask, start = (tensor.to(self.device) for tensor in (padded.ids, padded.mask, start))
        with nullcontext() if batch[0].query else self.meg.disable_edits():
            logits = self.meg.logits(
                ids, mask, start, [row.query for row in batch], logits_to_keep=longest, use_cache=False
            )
        return log_softmax(logits.float(), dim=-1)

    def _check_lengths(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> None:
        for texts, _, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise MegError(
                    f"The continuation {texts and texts[1]!r} of a task has {len(continuation)} tokens; the model can "
                    f"score 1 to {self.max_length}: change the task's data."
                )
        too_long = sum(len(context) + len(wanted) - 1 > self.max_length for _, context, wanted in requests)
        if too_long:
            logger.warning(
                "%d of %d contexts are longer than the model's %d tokens and were cut on the left",
                too_long,
                len(requests),
                self.max_length,
            )

    def tok_batch_encode(self, strings: list[str], **options: Any) -> Any:
        """Token ids of the contexts that are generated from next, whose queries are kept."""
        self._queries = [self.query_of(text) for text in strings]
        return super().tok_batch_encode(strings, **options)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        if not options.get("do_sample"):
            options.update(do_sample=False)
            options.pop("temperature", None)  # means nothing without sampling, and `generate` would warn
        stops = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context))
        return self.meg.generate(
            context, queries=self._queries, max_length=max_length, stopping_criteria=stops, use_cache=True, **options
        )


def _batches(rows: Sequence[_Pass] | dict[_Pass, list[int]], size: int) -> Iterator[list[_Pass]]:
    """Batches with and without a query apart, the longest rows first."""

    def key(row: _Pass) -> tuple[bool, int, tuple[int, ...]]:
        return not row.query, -len(row.tokens), row.tokens

    for _, group in groupby(sorted(rows, key=key), key=lambda row: bool(row.query)):
        members = list(group)
        yield from (members[i : i + size] for i in range(0, len(members), size))


@contextmanager
def harness_level(level: int) -> Iterator[None]:
    """Within the context the harness logs from this level on."""
    harness = logging.getLogger("lm_eval")
    previous = harness.level
    harness.setLevel(level)
    try:
        yield
    finally:
        harness.setLevel(previous)
