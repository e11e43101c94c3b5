"""MegModel: a base model and an adapter, used like a Hugging Face model.

Source: MeG (arXiv 2512.14395), section 3.5: query -> vector -> router; not familiar: the model is untouched;
familiar: sample the neuron's weights and generate with them. One batch may mix edited and other queries.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter, check_base, load_adapter
from megedit.adapter.folder import copy_adapter
from megedit.adapter.ledger import Status
from megedit.edits.edit_set import Edit
from megedit.lm.backbone import Backbone
from megedit.lm.batches import shared_columns
from megedit.lm.loading import load_base
from megedit.lm.template import Template
from megedit.neuron import DynamicNeuron, NeuronWeights
from megedit.router.router import Routing, encode_queries
from megedit.settings import Rule

REMEMBERED = 4096  # queries
# the most likely token each time, whatever a base model's own generation settings say
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

_switched_off: ContextVar[frozenset[int]] = ContextVar("switched_off", default=frozenset())  # `id` of the models


@dataclass(frozen=True)
class Route:
    """What the router says of one query.

    familiar: an edit is used. score: the decision value, familiar at or above `threshold` unless the nearest edit was
    removed. rule: what the score is made of. entropy: nats, of the familiarity network's output. nearest: the most
    similar edit, similarity: the cosine to it, and status: whether it is in force or removed. named: how far the query
    names the subject of that edit, 1 on its own, less as a part of a longer name, 0 not at all. neuron: whether the
    neuron that is used was generated from the query or is the one collected for the edit, None if none is.
    """

    query: str
    familiar: bool
    score: float
    threshold: float
    rule: Rule
    entropy: float
    nearest: Edit
    similarity: float
    status: Status
    named: float
    neuron: Literal["generated", "collected"] | None


class _LastBatch(threading.local):
    """What a thread has asked last."""

    routes: Sequence[Route] = ()


class MegModel:
    """An edited model: `generate` answers edited queries with their edits and all others as the base model does.

    Several threads may call one model at a time. `routes` and `disable_edits` belong to the thread that calls.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: Adapter) -> None:
        """Put an adapter on a loaded base model. Raises MegError when it was made for another base model."""
        check_base(base, adapter.config)
        self.base, self.tokenizer, self.adapter = base, tokenizer, adapter
        self.backbone = Backbone(base, adapter.config.layer)
        self._neuron = DynamicNeuron(self.backbone.place, self.backbone.activation)
        self._last_batch = _LastBatch()
        self._remembered: OrderedDict[str, tuple[Route, Tensor | None]] = OrderedDict()  # by query
        self._routing = threading.RLock()  # held while encoder, tokenizer, generator or `_remembered` are used
        self._turn: AbstractContextManager[Any] = threading.RLock() if _changes_itself(base) else nullcontext()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        base: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> MegModel:
        """Load an adapter (folder or hub name) and its base model.

        base: where the base model is now, when it is not where the adapter's config says.
        """
        adapter = load_adapter(name, device=device)
        model, tokenizer = load_base(base or adapter.config.base, dtype=dtype, device=device)
        return cls(model, tokenizer, adapter)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the adapter, as it is in its folder now, to another, which must not hold anything else."""
        copy_adapter(self.adapter.folder, folder)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the adapter to the Hugging Face Hub as `name` (owner/name); returns its address."""
        return self.adapter.push_to_hub(name, **options)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that are in force."""
        return self.adapter.active_edits

    @property
    def routes(self) -> list[Route]:
        """The routes of the rows of the last batch that this thread has had answered with edits."""
        return list(self._last_batch.routes)

    def format(self, query: str) -> str:
        """The query in the adapter's template, as text for the tokenizer."""
        return self.adapter.config.template.format(query)

    @torch.no_grad()
    def route(self, queries: str | Sequence[str]) -> Any:
        """The router's answer for one bare query (`Route`) or several (list of `Route`)."""
        if isinstance(queries, str):
            return self.route([queries])[0]
        with self._routing:
            return self._routes(queries, self.adapter.router.route(self.encode(queries), queries))

    def neurons(self, queries: Sequence[str]) -> tuple[Tensor, NeuronWeights]:
        """The familiar rows among the queries (int64 (n,)) and a neuron for each of them.

        It is generated from the query or, where the generator does not give the edit's answer, the collected one.
        What was found for a query is remembered, for the `REMEMBERED` queries asked last, and its route in `routes`.
        """
        found = self._found(queries)
        self._last_batch.routes = [found[query][0] for query in queries]
        rows = [row for row, query in enumerate(queries) if found[query][1] is not None]
        weights = [weight for query in queries if (weight := found[query][1]) is not None]
        stacked = torch.stack(weights) if weights else torch.zeros(0, self.backbone.weight_size)
        return (
            torch.tensor(rows, dtype=torch.long, device=self.backbone.device),
            NeuronWeights.from_vectors(stacked.to(self.backbone.device), self.backbone.hidden_size),
        )

    def _found(self, queries: Sequence[str]) -> dict[str, tuple[Route, Tensor | None]]:
        """The route and the weight vector of each query, from memory where it has been asked before."""
        with self._routing:
            new = [query for query in dict.fromkeys(queries) if query not in self._remembered]
            found = {query: self._remembered[query] for query in queries if query in self._remembered}
            found |= zip(new, self._generated(new), strict=True)
            for query in queries:
                self._remembered[query] = found[query]
                self._remembered.move_to_end(query)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    @torch.no_grad()
    def _generated(self, queries: Sequence[str]) -> list[tuple[Route, Tensor | None]]:
        """For each query its route and weight vector, float32 (L,), or None where it is not familiar."""
        if not queries:
            return []
        vectors = self.encode(queries)
        routing = self.adapter.router.route(vectors, queries)
        routes = self._routes(queries, routing)
        rows = [row for row, route in enumerate(routes) if route.neuron == "generated"]
        generated = self.adapter.generate(vectors[rows], routing.nearest[rows]) if rows else vectors[:0]
        # copies, so that one remembered row does not keep its whole batch in memory
        found = {row: weights.clone() for row, weights in zip(rows, generated, strict=True)}
        for row, route in enumerate(routes):
            if route.neuron == "collected":
                nearest = self.adapter.routed[int(routing.nearest[row])]
                found[row] = self.adapter.collected[nearest.number].to(vectors.device)
        return [(route, found.get(row)) for row, route in enumerate(routes)]

    def _routes(self, queries: Sequence[str], routing: Routing) -> list[Route]:
        routes = []
        for i, query in enumerate(queries):
            nearest, familiar = self.adapter.routed[int(routing.nearest[i])], bool(routing.familiar[i])
            routes.append(
                Route(
                    query=query,
                    familiar=familiar,
                    score=float(routing.score[i]),
                    threshold=float(routing.threshold[i]),
                    rule=routing.rule[i],
                    entropy=float(routing.entropy[i]),
                    nearest=nearest.edit,
                    similarity=float(routing.similarity[i]),
                    status=nearest.status,
                    named=float(routing.named[i]),
                    neuron=None if not familiar else "generated" if nearest.generated else "collected",
                )
            )
        return routes

    @contextmanager
    def disable_edits(self) -> Iterator[None]:
        """Within the context, this thread is answered by the base model; other threads keep the edits."""
        before = _switched_off.set(_switched_off.get() | {id(self)})
        try:
            yield
        finally:
            _switched_off.reset(before)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        queries: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Hugging Face `generate` on left-padded prompts (rows, columns), each row with its own neuron or none.

        queries: the bare query of each row; found in the prompts when not given. options: those of `generate`.
        Raises ValueError when the number of queries is not that of the rows.
        """
        options.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        start = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
        cache = options.get("past_key_values")
        column = cache.get_seq_length() if cache is not None else 0
        with self._turn, self._edited(input_ids, attention_mask, start, queries, column):
            return cast(Any, self.base).generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    def answer(self, queries: Sequence[str], max_new_tokens: int = 50) -> list[str]:
        """Greedy answers to bare queries, each asked through the adapter's template."""
        answers = self.answer_tokens(queries, max_new_tokens)
        with self._routing:
            return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def answer_tokens(self, queries: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers as token ids, cut before the end-of-text token."""
        prompts = self.prompts(queries)
        output = self.generate(**prompts, queries=queries, max_new_tokens=max_new_tokens, **GREEDY)
        return cut_answers(output[:, prompts["input_ids"].shape[1] :], end_tokens(self.base, self.tokenizer))

    @torch.no_grad()
    def prompts(self, queries: Sequence[str], template: Template | None = None) -> dict[str, Any]:
        """The queries in a template as one batch for `generate` or `logits`, to be used once.

        template: that of the adapter when not given.
        Where the neuron leaves the prompt alone, all but its last token has been run already, for the edited model as
        for the base model: the keys and values are in `past_key_values`. What all prompts begin with (the template) was
        run as one row, and the padding stands behind it, unless attention is local.
        """
        template = template or self.adapter.config.template
        with self._routing:
            rows = [self.tokenizer(template.format(query)).input_ids for query in queries]
        shared = shared_columns(self.backbone, rows, self.adapter.config.positions)
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, :shared], mask[i, :shared] = torch.tensor(row[:shared], dtype=torch.long), 1
            ids[i, width - len(row) + shared :] = torch.tensor(row[shared:])
            mask[i, width - len(row) + shared :] = 1
        ids, mask = ids.to(self.base.device), mask.to(self.base.device)
        if self.adapter.config.positions == "all" or width == 1:
            return {"input_ids": ids, "attention_mask": mask}
        positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None

        def columns(count: int, first: int, last: int) -> dict[str, Tensor]:
            return {
                "input_ids": ids[:count, first:last],
                "position_ids": positions[:count, first:last],
                "attention_mask": mask[:count, :last],
            }

        with self._turn:
            if shared:
                cache = self.backbone.context(columns(1, 0, shared))
                cache.batch_repeat_interleave(len(rows))
            if shared < width - 1:
                cache = self.backbone.context(columns(len(rows), shared, width - 1), cache)
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_start: Tensor,
        queries: Sequence[str],
        **options: Any,
    ) -> Tensor:
        """Logits (rows, columns, vocabulary) of given prompts and answers, as teacher forcing needs them.

        answer_start: int64 (rows,), the column of each row's first answer token. options: those of the base model's
        forward pass, `past_key_values` of the first columns among them. Positions are counted without padding, as
        `generate` counts them. Returns logits of the columns that are not in the cache.
        """
        cache = options.get("past_key_values")
        column = cache.get_seq_length() if cache is not None else 0
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with self._turn, self._edited(input_ids, attention_mask, answer_start - 1, queries, column):
            output = self.base(
                input_ids=input_ids[:, column:],
                attention_mask=attention_mask,
                position_ids=positions[:, column:],
                **options,
            )
        logits: Tensor = output.logits
        return logits

    @contextmanager
    def _edited(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        last_prompt_column: Tensor,
        queries: Sequence[str] | None,
        column: int = 0,
    ) -> Iterator[None]:
        if id(self) in _switched_off.get():
            yield
            return
        if queries is None:
            if attention_mask is None:  # only what stands before a prompt is padding; the same token may end a turn
                attention_mask = (input_ids != self.tokenizer.pad_token_id).long().cummax(1).values
            with self._routing:
                queries = [
                    self.adapter.config.template.query_of(str(self.tokenizer.decode(ids[mask.bool()])))
                    for ids, mask in zip(input_ids, attention_mask, strict=True)
                ]
        if len(queries) != len(input_ids):
            raise ValueError(f"{len(queries)} queries were given for {len(input_ids)} rows")
        rows, weights = self.neurons(queries)
        start = (
            last_prompt_column if self.adapter.config.positions == "answer" else torch.zeros_like(last_prompt_column)
        )
        with self._neuron.active(weights, rows, start[rows], len(input_ids), column):
            yield

    def encode(self, queries: Sequence[str]) -> Tensor:
        """The vectors by which bare queries are routed, and from which neurons are generated: float32 (queries, C)."""
        router = self.adapter.router
        return encode_queries(self.adapter.encoder, queries, router.vectors, router.subjects)


def _changes_itself(base: PreTrainedModel) -> bool:
    """True for a model whose positions depend on the longest text seen so far: its calls must follow one another."""
    kinds = [kind for module in base.modules() if (kind := getattr(module, "rope_type", None))]
    names = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in name or name == "longrope" for name in names)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids at which a model's answer ends."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def cut_answers(tokens: Tensor, ends: set[int]) -> list[list[int]]:
    """New tokens (rows, columns) of a batch, each row cut before its first end token."""
    rows: list[list[int]] = tokens.tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
