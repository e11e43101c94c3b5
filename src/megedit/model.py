"""MegModel: a base model and an adapter, used like a Hugging Face model.

Source: MeG (arXiv 2512.14395), section 3.5: query -> vector -> router; not familiar: the model is untouched;
familiar: sample the neuron's weights and generate with them. One batch may mix edited and other queries.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.utils import GenerateDecoderOnlyOutput

from megedit.adapter.adapter import Adapter, check_base, load_adapter
from megedit.adapter.folder import copy_adapter
from megedit.adapter.ledger import EditRecord
from megedit.edits import Edit
from megedit.lm.backbone import Backbone
from megedit.lm.batches import pad, position_ids, shared_columns
from megedit.lm.decoding import Decoded, decode, end_tokens
from megedit.lm.prompts import Prompts, cached_columns, last_columns, left_padded, mask_of, prompt_ids, texts_of
from megedit.lm.structure import cache_argument
from megedit.lm.surface import HuggingFaceSurface, number_format, one_device
from megedit.lm.template import Template
from megedit.neuron import DynamicNeuron, NeuronWeights
from megedit.routes import Found, Near, NeuronFinder, Route

logger = logging.getLogger("megedit")

ANSWER_TOKENS = 50  # an answer is at least allowed so many
SPARE_TOKENS = 8  # and, where an edit is used, so many more than its target has
CUT = " …"  # the mark of an answer that the default limit has cut

OnOtherTemplate = Literal["edit", "base"]

_switched_off: ContextVar[frozenset[int]] = ContextVar("switched_off", default=frozenset())  # `id` of the models


class _LastBatch(threading.local):
    """The queries that a thread has asked last."""

    routes: Sequence[Route] = ()


@dataclass(frozen=True)
class _Edits:
    """The neurons of a batch. weights: of n neurons; rows, start: int64 (n,), as `DynamicNeuron.active` takes them."""

    weights: NeuronWeights
    rows: Tensor
    start: Tensor
    batch_size: int


class MegModel(HuggingFaceSurface):
    """An edited model: `generate` answers edited queries with their edits and all others as the base model does.

    Several threads may call one model at a time. `routes` and `disable_edits` belong to the thread that calls.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: Adapter,
        on_other_template: OnOtherTemplate = "edit",
    ) -> None:
        """Put an adapter on a loaded base model; `detach` takes it off again.

        on_other_template: what becomes of an edited query whose prompt is not in the adapter's template, where its
        neuron may say nothing: the neuron is used all the same, or the base model answers.
        Raises MegError when the adapter was made for another base model.
        """
        check_base(base, adapter.config)
        self.base, self.tokenizer, self.adapter = base, tokenizer, adapter
        self.on_other_template = on_other_template
        self.backbone = Backbone(base, adapter.config.layer)
        self._neuron = DynamicNeuron(self.backbone.place, self.backbone.activation)
        self._attached, self._warned = True, False
        self._prompts = Prompts(tokenizer, adapter.config.template)
        self._finder = NeuronFinder(adapter)
        self._last_batch = _LastBatch()
        self._continued: WeakKeyDictionary[Cache, _Edits] = WeakKeyDictionary()  # by the cache of a forward call
        self._turn: AbstractContextManager[Any] = threading.RLock() if _changes_itself(base) else nullcontext()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        base: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        on_other_template: OnOtherTemplate = "edit",
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
    ) -> MegModel:
        """Load an adapter (folder or hub name) and its base model.

        base: where the base model is now, when it is not where the adapter's config says. dtype: the base model's
        number format; by default the one that is fast on the device. device: of all parts; `auto` spreads the base
        model over several. on_other_template: as in the constructor. torch_dtype, device_map: Hugging Face's names for
        dtype and device.
        """
        device = device if device_map is None else one_device(device_map)
        dtype = number_format(torch_dtype if dtype is None else dtype)
        adapter = load_adapter(name, device, dtype=dtype)
        return cls(*adapter.load_base(base, dtype, device), adapter, on_other_template)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the adapter, as it is in its folder now, to another, which must not hold anything else."""
        copy_adapter(self.adapter.folder, folder)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the adapter to the Hugging Face Hub as `name` (owner/name); returns its address."""
        return self.adapter.push_to_hub(name, **options)

    def detach(self) -> PreTrainedModel:
        """Take the adapter off the base model, which is returned and answers as it did before. For good."""
        self._neuron.detach()
        self._attached = False
        return self.base

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that are in force."""
        return self.adapter.active_edits

    @property
    def routes(self) -> list[Route]:
        """The routes of the rows of the last batch that this thread has had answered with edits."""
        return list(self._last_batch.routes)

    @contextmanager
    def disable_edits(self) -> Iterator[None]:
        """Within the context, this thread is answered by the base model; other threads keep the edits."""
        before = _switched_off.set(_switched_off.get() | {id(self)})
        try:
            yield
        finally:
            _switched_off.reset(before)

    # -- queries

    def format(self, query: str) -> str:
        """The query in the adapter's template, as text for the tokenizer."""
        return self.adapter.config.template.format(query)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""
        return self._prompts.encode(prompt)

    @overload
    def route(self, queries: str) -> Route: ...  # type: ignore[overload-overlap]
    @overload
    def route(self, queries: Iterable[str]) -> list[Route]: ...
    def route(self, queries: str | Iterable[str]) -> Route | list[Route]:
        """The router's view of one bare query, or of each of several."""
        return self._finder.route([queries])[0] if isinstance(queries, str) else self._finder.route(texts_of(queries))

    def nearest(self, query: str, count: int = 1) -> tuple[Near, ...]:
        """The edits nearest to a bare query, each with the verifier's score; the best first."""
        return self._finder.nearest(query, count)

    def generated(self, query: str) -> tuple[EditRecord, Tensor] | None:
        """A bare query's best candidate and the neuron generated as for it, as `NeuronFinder.generated` gives them."""
        return self._finder.generated(query)

    def neurons(self, queries: Iterable[str]) -> tuple[Tensor, NeuronWeights]:
        """The familiar rows among the queries (int64 (n,)) and a neuron for each of them.

        It is generated from the query or, where the generator does not give the edit's answer, the collected one.
        What was found for the queries asked last is remembered, and their routes are in `routes`.
        """
        found = self.find(queries)
        self._last_batch.routes = [query.route for query in found]
        return self._stacked([query.weights for query in found])

    def find(self, queries: Iterable[str]) -> list[Found]:
        """The route and the neuron of each bare query; `routes` stays as it is."""
        return self._finder.find(texts_of(queries))

    def serve(self, adapter: Adapter) -> None:
        """Answer by another state of the same adapter from the next call on; calls that are under way keep theirs."""
        self.adapter, self._finder = adapter, NeuronFinder(adapter)

    # -- answers

    @overload
    def answer(self, queries: str, max_new_tokens: int | None = None) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def answer(self, queries: Iterable[str], max_new_tokens: int | None = None) -> list[str]: ...
    def answer(self, queries: str | Iterable[str], max_new_tokens: int | None = None) -> str | list[str]:
        """Greedy answers to bare queries, each asked through the adapter's template; one text for one query.

        max_new_tokens: by default as many as `greedy` allows; an answer that this default has cut ends in `CUT`.
        """
        if isinstance(queries, str):
            return self.answer([queries], max_new_tokens)[0]
        mark = CUT if max_new_tokens is None else ""
        return [found.text.strip() + mark * found.cut for found in self.greedy(queries, max_new_tokens)]

    def greedy(self, queries: Iterable[str], max_new_tokens: int | None = None, scores: bool = False) -> list[Decoded]:
        """Decode the greedy answers to bare queries, each asked through the adapter's template.

        max_new_tokens: by default `ANSWER_TOKENS`, or more where the target of an edit that is used is longer.
        scores: give the probabilities of the tokens too.
        """
        queries = texts_of(queries)
        limit = self._longest_answer(queries) if max_new_tokens is None else max_new_tokens
        generate, ends = partial(self.generate, queries=queries), end_tokens(self.base, self.tokenizer)
        return decode(generate, self.tokenizer, self.prompts(queries), ends, limit, scores)

    def _longest_answer(self, queries: Sequence[str]) -> int:
        """The default limit of a batch, in tokens."""
        if self._off:
            return ANSWER_TOKENS
        edits = [found.route.edit for found in self._finder.find(queries)]
        targets = {edit.target for edit in edits if edit is not None}
        return max([ANSWER_TOKENS, *(self._prompts.answer_length(target) + SPARE_TOKENS for target in targets)])

    @torch.no_grad()
    def prompts(self, queries: Iterable[str], template: Template | None = None) -> dict[str, Any]:
        """The queries in a template as one batch for `generate` or `logits`, to be used once.

        template: that of the adapter when not given.
        Where the neuron leaves the prompt alone, all but its last token has been run already, for the edited model as
        for the base model: the keys and values are among the arguments. What all prompts begin with (the template) was
        run as one row, and the padding stands behind it, unless attention is local.
        """
        rows = self._prompts.ids(texts_of(queries), template)
        shared = shared_columns(self.backbone, rows, self.adapter.config.positions)
        batch = pad(rows, self.tokenizer.pad_token_id, shared).to(self.base.device)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if rows and self.adapter.config.positions == "answer":
            with self._turn:
                cache = batch.run_context(self.backbone, max(batch.width - 1, 0))
            if cache is not None:
                inputs[cache_argument(self.base)] = cache
        return inputs

    # -- Hugging Face's generate and forward

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        queries: Iterable[str] | None = None,
        neurons: Sequence[Tensor | None] | None = None,
        answer_start: Tensor | None = None,
        on_other_template: OnOtherTemplate | None = None,
        **options: Any,
    ) -> Any:
        """Hugging Face `generate` on prompts (rows, columns), each row with its own neuron or none.

        Prompts that are padded on the right are returned padded on the left. queries: the bare query of each row; found
        in the prompts when not given. neurons: in place of what is found for queries, the weights of each row's neuron
        (float32 (L,), `find` gives them), None where the base model answers. answer_start: int64 (rows,), the column of
        each row's first answer token where its answer has begun already. on_other_template: that of the model when not
        given. options: those of `generate`, `inputs` as another name of `input_ids` among them.
        Raises TypeError or ValueError when the prompts or queries are of another kind, or not one query a row.
        """
        ids = prompt_ids(input_ids, options.pop("inputs", None))
        config = options.get("generation_config")
        if config is None:
            options.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        elif config.pad_token_id is None:  # within the configuration, since beside it Hugging Face warns
            config = options["generation_config"] = copy.deepcopy(config)
            config.pad_token_id = self.tokenizer.pad_token_id
        if not len(ids):
            as_dict = options.get("return_dict_in_generate", config is not None and config.return_dict_in_generate)
            return GenerateDecoderOnlyOutput(sequences=ids) if as_dict else ids  # type: ignore[arg-type]
        column = cached_columns(self._cache_in(options))
        mask = self._mask_of(ids) if attention_mask is None else attention_mask
        if not mask[:, -1].all():
            if column:
                raise ValueError("prompts whose first columns are cached must be padded on the left")
            ids, mask = left_padded(ids, mask)
            attention_mask = mask
        begin = torch.full((len(ids),), ids.shape[1], device=ids.device) if answer_start is None else answer_start
        if neurons is None:
            edits = self._edits(ids, mask, begin - 1, queries, on_other_template)
        else:
            edits = self._edits_of(neurons, begin - 1)
        with self._turn, self._active(edits, column):
            return cast(Any, self.base).generate(input_ids=ids, attention_mask=attention_mask, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run `forward`."""
        return self.forward(*args, **options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        queries: Iterable[str] | None = None,
        answer_start: Tensor | None = None,
        on_other_template: OnOtherTemplate | None = None,
        **options: Any,
    ) -> Any:
        """The base model's forward pass on prompts (rows, columns), each row with its own neuron or none.

        answer_start: int64 (rows,), the column of each row's first answer token, where answers stand behind the
        prompts; by default a prompt ends with the last token of its row. queries: the bare query of each row; found in
        the prompts when not given. Where `past_key_values` is what an earlier call has returned, the neurons of that
        call go on; with a cache of another origin, `queries` must be given. options: those of the forward pass.
        """
        cache = self._cache_in(options)
        column = cached_columns(cache)
        if attention_mask is not None and "position_ids" not in options and not attention_mask.all():
            options["position_ids"] = position_ids(attention_mask)[:, column:]
        known = self._continued.get(cache) if column and cache is not None and queries is None else None
        if self._off:
            edits = self._no_edits(len(input_ids))
        elif known is not None:
            edits = known
        elif not column:
            mask = self._mask_of(input_ids) if attention_mask is None else attention_mask
            start = last_columns(mask) if answer_start is None else answer_start - 1
            prompt = mask * (torch.arange(mask.shape[1], device=mask.device) <= start[:, None])  # (rows, columns)
            edits = self._edits(input_ids, prompt, start, queries, on_other_template)
        elif queries is not None:
            last = torch.full((len(input_ids),), column + input_ids.shape[1] - 1, device=input_ids.device)
            edits = self._edits(None, input_ids, last if answer_start is None else answer_start - 1, queries, None)
        else:
            raise ValueError("queries must be given, since the first columns are in a cache of another origin")
        if edits.batch_size != len(input_ids):
            raise ValueError(f"the cache is one of {edits.batch_size} rows, not of {len(input_ids)}")
        with self._turn, self._active(edits, column):
            output = self.base(input_ids=input_ids, attention_mask=attention_mask, **options)
        if not self._off and (cache := getattr(output, cache_argument(self.base), None)) is not None:
            self._continued[cache] = edits
        return output

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_start: Tensor,
        queries: Iterable[str],
        **options: Any,
    ) -> Tensor:
        """Logits (rows, columns, vocabulary) of given prompts and answers, as teacher forcing needs them.

        answer_start: int64 (rows,), the column of each row's first answer token. options: those of the base model's
        forward pass, `past_key_values` of the first columns among them. Positions are counted without padding, as
        `generate` counts them. Returns logits of the columns that are not in the cache.
        """
        column = cached_columns(self._cache_in(options))
        options["position_ids"] = position_ids(attention_mask)[:, column:]
        output = self.forward(
            input_ids[:, column:], attention_mask, queries=queries, answer_start=answer_start, **options
        )
        logits: Tensor = output.logits
        return logits

    def _cache_in(self, options: dict[str, Any]) -> Any:
        """The cache among the options, under either of its names; it stands under the model's own from then on."""
        own = cache_argument(self.base)
        for name in ("past_key_values", "cache"):
            if name != own and (cache := options.pop(name, None)) is not None:
                options[own] = cache
        return options.get(own)

    # -- the neurons of a batch

    def _moved(self) -> None:
        self.adapter.to(self.device)
        self._finder.forget()

    @property
    def _off(self) -> bool:
        return id(self) in _switched_off.get()

    def _mask_of(self, input_ids: Tensor) -> Tensor:
        return mask_of(input_ids, self.tokenizer.pad_token_id, end_tokens(self.base, self.tokenizer))

    @contextmanager
    def _active(self, edits: _Edits, column: int) -> Iterator[None]:
        with self._neuron.active(edits.weights, edits.rows, edits.start, edits.batch_size, column):
            yield

    def _edits(
        self,
        input_ids: Tensor | None,
        mask: Tensor,
        last_prompt_column: Tensor,
        queries: Iterable[str] | None,
        on_other_template: OnOtherTemplate | None,
    ) -> _Edits:
        """The neurons of a batch of prompts, none while the edits are switched off.

        input_ids: None where the prompts are not known, only their queries. mask: of the prompts, without answers.
        """
        if queries is not None:
            queries = texts_of(queries, len(mask))
        if self._off:
            return self._no_edits(len(mask))
        if not self._attached:
            raise RuntimeError("This model was detached from its base model; put the adapter on a base model anew.")
        if queries is None:
            assert input_ids is not None, "forward asks for queries where the prompts are in a cache"
            queries = [self._prompts.query_of(text) for text in self._prompts.texts(input_ids, mask)]
        rows, weights = self.neurons(queries)  # (n,)
        if input_ids is not None and len(rows):
            kept = self._kept(input_ids, mask, queries, rows, on_other_template or self.on_other_template)
            rows, weights = rows[kept], weights[kept]
        return _Edits(weights, rows, self._first_column(last_prompt_column)[rows], len(mask))

    def _edits_of(self, neurons: Sequence[Tensor | None], last_prompt_column: Tensor) -> _Edits:
        """Given neurons of a batch, one a row."""
        if len(neurons) != len(last_prompt_column):
            raise ValueError(f"{len(neurons)} neurons were given for {len(last_prompt_column)} rows")
        rows, weights = self._stacked(neurons)
        return _Edits(weights, rows, self._first_column(last_prompt_column)[rows], len(neurons))

    def _first_column(self, last_prompt_column: Tensor) -> Tensor:
        """The column from which each row's neuron acts."""
        answer_only = self.adapter.config.positions == "answer"
        return last_prompt_column if answer_only else torch.zeros_like(last_prompt_column)

    def _stacked(self, neurons: Sequence[Tensor | None]) -> tuple[Tensor, NeuronWeights]:
        """The rows that have a neuron (int64 (n,)), and the neurons."""
        rows = [row for row, weights in enumerate(neurons) if weights is not None]
        own = [weights for weights in neurons if weights is not None]
        stacked = torch.stack(own) if own else torch.zeros(0, self.backbone.weight_size)  # (n, L)
        return (
            torch.tensor(rows, dtype=torch.long, device=self.backbone.device),
            NeuronWeights.from_vectors(stacked.to(self.backbone.device), self.backbone.hidden_size),
        )

    def _no_edits(self, batch_size: int) -> _Edits:
        return self._edits_of([None] * batch_size, torch.zeros(batch_size, dtype=torch.long, device=self.device))

    def _kept(
        self, input_ids: Tensor, mask: Tensor, queries: Sequence[str], rows: Tensor, on_other_template: OnOtherTemplate
    ) -> Tensor:
        """The familiar rows, of int64 (n,), that keep their neuron, whatever template they are in: bool (n,)."""
        familiar = rows.tolist()
        texts = self._prompts.texts(input_ids[rows], mask[rows])
        inside = [self._prompts.in_template(text, queries[row]) for text, row in zip(texts, familiar, strict=True)]
        if all(inside):
            return torch.ones_like(rows, dtype=torch.bool)
        if not self._warned:
            self._warned = True
            logger.warning(
                "A prompt with an edited query is not in the adapter's template, %r. Its neuron was made for that "
                "template; elsewhere it may say nothing, or begin another text. Ask through answer() or format(), or "
                "choose on_other_template='base' to leave such prompts to the base model.",
                self.adapter.config.template.text,
            )
        if on_other_template == "edit":
            return torch.ones_like(rows, dtype=torch.bool)
        left = {row for row, own in zip(familiar, inside, strict=True) if not own}
        self._last_batch.routes = [
            replace(route, neuron=None) if row in left else route for row, route in enumerate(self._last_batch.routes)
        ]
        return torch.tensor(inside, device=rows.device)


def _changes_itself(base: PreTrainedModel) -> bool:
    """True for a model whose positions depend on the longest text seen so far: its calls must follow one another."""
    kinds = [kind for module in base.modules() if (kind := getattr(module, "rope_type", None))]
    names = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in name or name == "longrope" for name in names)
