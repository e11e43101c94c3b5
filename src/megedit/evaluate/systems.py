"""The systems that can be evaluated: our edited models, Hugging Face models, functions from questions to answers.

A system answers bare queries and, where it is a language model, tells what it makes of given answers. Every system
is asked in the same way, so that the same rules hold for every editor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.evaluate.metrics import token_agreement
from megedit.lm.batches import encode_answer, position_ids, right_padded
from megedit.lm.decoding import decode, end_tokens
from megedit.lm.loading import fingerprint
from megedit.lm.template import Template
from megedit.model import MegModel
from megedit.routes import Route


@dataclass(frozen=True)
class Answer:
    """A system's answer, without any normalisation.

    tokens: up to its end; None from a system without tokens. cut: it did not end within its limit.
    """

    text: str
    tokens: tuple[int, ...] | None = None
    cut: bool = False


class System(Protocol):
    """A model under test."""

    @property
    def name(self) -> str:
        """Name of the system in results."""
        ...

    @property
    def identity(self) -> str | None:
        """Equal for systems that answer alike; None where that cannot be known."""
        ...

    def token_counts(self, answers: Sequence[str]) -> list[int] | None:
        """The length of each answer in tokens; None from a system without tokens."""
        ...

    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        """One answer a query, each up to its limit in tokens; greedy, or sampled from the `top_k` likeliest tokens."""
        ...

    def agreement(
        self, queries: Sequence[str], wanted: Sequence[str | Answer], said: Sequence[Answer] | None = None
    ) -> list[float] | None:
        """Share of each wanted answer's tokens that are the first choice after the ones before them.

        said: the greedy answers to these queries, where they are known. None from a system that cannot tell.
        """
        ...

    def log_probs(self, queries: Sequence[str], wanted: Sequence[str | Answer]) -> list[list[float]] | None:
        """Log-probability (nats) of each token of the wanted answers; None from a system that cannot tell."""
        ...

    def routes(self, queries: Sequence[str]) -> list[Route] | None:
        """The router's decisions; None for a system without a router."""
        ...


class FunctionSystem:
    """A function from a list of queries to a list of answers. Only what needs no probabilities can be measured."""

    identity = None

    def __init__(self, function: Callable[[list[str]], list[str]], name: str = "function") -> None:
        self._function, self.name = function, name

    def token_counts(self, answers: Sequence[str]) -> None:
        return None

    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        """The function's answers; how long they are and how they are chosen is the function's own affair."""
        texts = self._function(list(queries))
        if len(texts) != len(queries):
            raise ValueError(f"the function gave {len(texts)} answers to {len(queries)} queries")
        return [Answer(text) for text in texts]

    def agreement(
        self, queries: Sequence[str], wanted: Sequence[str | Answer], said: Sequence[Answer] | None = None
    ) -> None:
        return None

    def log_probs(self, queries: Sequence[str], wanted: Sequence[str | Answer]) -> None:
        return None

    def routes(self, queries: Sequence[str]) -> None:
        return None


class ModelSystem:
    """A Hugging Face causal language model, asked through a template."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template, name: str = "model"
    ) -> None:
        self.model, self.tokenizer, self.template, self.name = model, tokenizer, template, name

    @property
    def identity(self) -> str | None:
        return _digest(fingerprint(self.model), str(self.model.dtype), repr(self.template))

    def token_counts(self, answers: Sequence[str]) -> list[int]:
        texts = [self.template.answer_prefix + answer for answer in answers]
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids] if texts else []

    @torch.no_grad()
    def answers(self, queries: Sequence[str], limits: Sequence[int], top_k: int = 1, seed: int = 0) -> list[Answer]:
        choice: dict[str, Any] = {} if top_k == 1 else {"do_sample": True, "top_k": top_k, "top_p": 1.0}
        generate, ends = partial(self._generate, queries), end_tokens(self.model, self.tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = decode(generate, self.tokenizer, self._prompts(queries), ends, max(limits, default=1), **choice)
        rows = [answer.tokens[:limit] for answer, limit in zip(found, limits, strict=True)]
        texts = self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        cut = [len(row) == limit for row, limit in zip(rows, limits, strict=True)]
        return [Answer(*parts) for parts in zip(texts, rows, cut, strict=True)]

    def agreement(
        self, queries: Sequence[str], wanted: Sequence[str | Answer], said: Sequence[Answer] | None = None
    ) -> list[float]:
        """Nothing is run when every greedy answer begins with the wanted tokens: decoding has just chosen them all."""
        tokens = [self._tokens(query, answer) for query, answer in zip(queries, wanted, strict=True)]
        greedy = [answer.tokens or () for answer in said] if said else [()] * len(tokens)
        if all(list(said[: len(wanted)]) == wanted for said, wanted in zip(greedy, tokens, strict=True)):
            return [1.0] * len(tokens)
        chosen = self._logits_of(queries, tokens).argmax(-1).tolist()
        return [token_agreement(row[: len(wanted)], wanted) for row, wanted in zip(chosen, tokens, strict=True)]

    def log_probs(self, queries: Sequence[str], wanted: Sequence[str | Answer]) -> list[list[float]]:
        tokens = [self._tokens(query, answer) for query, answer in zip(queries, wanted, strict=True)]
        if not any(tokens):
            return [[] for _ in tokens]
        logits = self._logits_of(queries, tokens).float()
        return [
            logits[row, : len(answer)].log_softmax(-1)[range(len(answer)), answer].tolist()
            for row, answer in enumerate(tokens)
        ]

    @torch.no_grad()
    def _logits_of(self, queries: Sequence[str], tokens: Sequence[list[int]]) -> Tensor:
        """Logits (rows, longest answer, vocabulary) from which each token of the given answers would be chosen."""
        prompts = self._prompts(queries)
        width = prompts["input_ids"].shape[1]
        ids = right_padded(tokens, self.tokenizer.pad_token_id).to(self.model.device)  # (rows, longest answer)
        prompts["input_ids"] = torch.cat([prompts["input_ids"], ids], 1)  # (rows, width + longest answer)
        prompts["attention_mask"] = torch.cat([prompts["attention_mask"], torch.ones_like(ids)], 1)
        return self._logits(prompts, queries, width, ids.shape[1] + 1)[:, :-1]

    def routes(self, queries: Sequence[str]) -> list[Route] | None:
        return None

    def _tokens(self, query: str, answer: str | Answer) -> list[int]:
        if isinstance(answer, Answer):
            if answer.tokens is not None:
                return list(answer.tokens)
            answer = answer.text
        prompt = self.template.format(query)
        return list(encode_answer(self.tokenizer, prompt, self.template.answer_prefix + answer)[1])

    def _prompts(self, queries: Sequence[str]) -> dict[str, Any]:
        texts = [self.template.format(query) for query in queries]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _generate(self, queries: Sequence[str], **options: Any) -> Any:
        model: Any = self.model
        return model.generate(**options)

    def _logits(self, inputs: dict[str, Any], queries: Sequence[str], width: int, keep: int) -> Tensor:
        """Logits of the last `keep` columns; the prompts are `width` columns wide."""
        positions = position_ids(inputs["attention_mask"])
        logits: Tensor = self.model(**inputs, position_ids=positions, logits_to_keep=keep).logits
        return logits


class MegSystem(ModelSystem):
    """An edited model, asked through a template; `unedited` is its base model, asked through the very same prompts."""

    def __init__(self, model: MegModel, name: str, template: Template | None = None) -> None:
        super().__init__(model.base, model.tokenizer, template or model.adapter.config.template, name)
        self.edited_model, self.edited = model, True
        self._shared = _Prompts(model, self.template)

    def unedited(self) -> MegSystem:
        """The model without its edits."""
        other = copy(self)
        other.name, other.edited = "unedited", False
        return other

    @property
    def identity(self) -> str:
        return _digest(self.edited_model.adapter.identity, str(self.model.dtype), repr(self.template), str(self.edited))

    def routes(self, queries: Sequence[str]) -> list[Route] | None:
        routes: list[Route] | None = self.edited_model.route(queries) if self.edited else None
        return routes

    def _prompts(self, queries: Sequence[str]) -> dict[str, Any]:
        return self._shared.of(queries)

    def _generate(self, queries: Sequence[str], **options: Any) -> Any:
        with self._state():
            return self.edited_model.generate(queries=queries, **options)

    def _logits(self, inputs: dict[str, Any], queries: Sequence[str], width: int, keep: int) -> Tensor:
        start = torch.full((len(queries),), width, device=inputs["input_ids"].device)
        with self._state():
            return self.edited_model.logits(**inputs, answer_start=start, queries=queries, logits_to_keep=keep)

    def _state(self) -> AbstractContextManager[None]:
        return nullcontext() if self.edited else self.edited_model.disable_edits()


class _Prompts:
    """The last batch of prompts: their keys and values are computed once for all that both models are asked of them."""

    def __init__(self, model: MegModel, template: Template) -> None:
        self._model, self._template = model, template
        self._queries: list[str] = []
        self._batch: dict[str, Any] = {}

    def of(self, queries: Sequence[str]) -> dict[str, Any]:
        """A batch to be used once."""
        if list(queries) != self._queries:
            self._queries, self._batch = list(queries), self._model.prompts(queries, self._template)
        return deepcopy(self._batch)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
