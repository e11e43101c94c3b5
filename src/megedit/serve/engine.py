"""Answers to what is waiting, in one batch that changes while it runs.

One thread generates. New requests join after `JOIN_AFTER` tokens of the others, if there is a place; each row has its
own neuron or none, its own sampling and its own end. `MegModel.generate` does the work, by Hugging Face's.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from megedit.errors import MegError
from megedit.lm.decoding import GREEDY, end_tokens
from megedit.lm.rolling import RollingBatch
from megedit.routes import Found, Route
from megedit.serve.store import Store
from megedit.serve.text import AnswerText

logger = logging.getLogger("megedit.serve")

JOIN_AFTER = 4  # tokens for which a request waits at most, where there is a place for it

Finish = Literal["stop", "length"]


class QueueFull(MegError):
    """More is waiting than the operator allows."""


class Stopping(MegError):
    """The server is being stopped."""


class Unreadable(MegError):
    """The adapter's folder cannot be read any more."""


@dataclass(frozen=True)
class Sampling:
    """The drawing of an answer. temperature: 0 takes the likeliest token each time."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The router's decision about a request. route: None where edits were switched off."""

    route: Route | None
    revision: int


@dataclass(frozen=True)
class Piece:
    """Further text of an answer; the last piece says why it ends there, and has the count of tokens."""

    text: str
    finish: Finish | None = None
    tokens: int = 0


Event = Decision | Piece | Exception


@dataclass(eq=False)
class Request:
    """One answer to be generated. prompt: token ids; edited_prompt: those in its place where an edit fires. query: for
    the router, None where the base model is asked.

    emit: called by the engine's thread with a decision, pieces of text, or what went wrong.
    """

    prompt: list[int]
    query: str | None
    sampling: Sampling
    emit: Callable[[Event], None]
    edited_prompt: list[int] | None = None
    cancelled: bool = False
    found: Found | None = None
    tokens: int = 0
    ended: bool = False
    text: AnswerText | None = field(default=None, repr=False)
    generator: torch.Generator | None = field(default=None, repr=False)

    def take(self, token: int, ends: set[int]) -> None:
        """Go on with a token that was chosen."""
        assert self.text is not None
        self.tokens += 1
        if token in ends:
            self._end(self.text.rest(), "stop")
            return
        shown = self.text.add(token)
        if self.text.stopped:
            self._end(shown, "stop")
        elif self.tokens >= self.sampling.max_tokens:
            self._end(shown + self.text.rest(), "length")
        elif self.cancelled:
            self.ended = True
        elif shown:
            self.emit(Piece(shown))

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        if not self.ended:
            self.ended = True
            self.emit(error)

    def _end(self, text: str, finish: Finish) -> None:
        self.ended = True
        self.emit(Piece(text, finish, self.tokens))


class Engine:
    """The thread that answers. Requests come from any thread, by `submit`."""

    def __init__(self, store: Store, batch: int, queue: int) -> None:
        self._store, self._size, self._most_waiting = store, batch, queue
        model = store.model
        self._ends = end_tokens(model.base, model.tokenizer)
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []  # as they stand in the batch
        self._batch = self._new_batch()
        self._changed, self._stopping = threading.Condition(), False
        self._refresher: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name="megedit answers", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True as long as requests are answered."""
        return self._thread.is_alive() and not self._stopping

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._rows)

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests be answered, all or none. Raises QueueFull or Stopping."""
        with self._changed:
            if self._stopping:
                raise Stopping("The server is being stopped; ask again in a moment.")
            if len(self._waiting) + len(requests) > self._most_waiting:
                raise QueueFull(f"{len(self._waiting)} requests are waiting already; ask again in a moment.")
            self._waiting.extend(requests)
            self._changed.notify()

    def drain(self) -> None:
        """Take no more: what waits is refused, what runs is finished."""
        with self._changed:
            self._stopping = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for request in refused:
            request.fail(Stopping("The server is being stopped; ask again in a moment."))

    def join(self) -> None:
        """Wait until what runs is finished, after `drain`."""
        if self._thread.ident is not None:
            self._thread.join()

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._rows or self._stopping)
                if self._stopping and not self._rows:
                    return
            try:
                self._admit()
                if self._rows:
                    self._generate()
            except Exception as error:  # of all requests at once: a full memory, a defect
                logger.exception("a batch failed")
                for request in self._rows:
                    request.fail(error)
                self._rows, self._batch = [], self._new_batch()

    def _new_batch(self) -> RollingBatch:
        model = self._store.model
        return RollingBatch(
            model.backbone, model.tokenizer.pad_token_id, cached=model.adapter.config.positions == "answer"
        )

    def _admit(self) -> None:
        """Let waiting requests into the batch, by the newest revision of the adapter."""
        free = self._size - len(self._rows)
        if not self._waiting or not free:
            return
        try:
            if not self._fresh():
                return
        except MegError as error:
            logger.error("the adapter cannot be read: %s", error)
            for request in self._taken(len(self._waiting)):
                request.fail(Unreadable("The adapter cannot be read; its operator is told more in the log."))
            return
        new = [request for request in self._taken(free) if not request.cancelled]
        try:
            self._route(new)
        except Exception as error:  # these alone fail
            logger.exception("requests could not be routed")
            for request in new:
                request.fail(error)
            return
        if new:
            running, self._rows = len(self._rows), self._rows + new  # all of them fail where the next line does
            order = self._batch.join([request.prompt for request in new])
            self._rows[running:] = [new[i] for i in order]

    def _taken(self, count: int) -> list[Request]:
        """At most so many of the waiting requests, which wait no longer."""
        with self._changed:
            return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _fresh(self) -> bool:
        """True where the newest revision is loaded. While others are being answered it is loaded beside them."""
        if not self._store.stale():
            return True
        if not self._rows:
            self._store.refresh()
            return True
        if self._refresher is None or not self._refresher.is_alive():
            self._refresher = threading.Thread(target=self._refresh, name="megedit refresh", daemon=True)
            self._refresher.start()
        return False

    def _refresh(self) -> None:
        try:
            self._store.refresh()
        except MegError as error:  # told again to whoever waits, once nothing runs
            logger.error("the adapter could not be read again: %s", error)

    def _route(self, requests: Sequence[Request]) -> None:
        """Find each request's edit and neuron, and tell."""
        model = self._store.model
        revision = model.adapter.revision
        asked = [request for request in requests if request.query is not None]
        for request, found in zip(asked, model.find([cast(str, r.query) for r in asked]), strict=True):
            request.found = found
            if found.weights is not None and request.edited_prompt is not None:
                request.prompt = request.edited_prompt
        for request in requests:
            request.text = AnswerText(model.tokenizer, request.sampling.stop)
            if request.sampling.temperature > 0:
                seed = request.sampling.seed
                request.generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
            request.emit(Decision(None if request.found is None else request.found.route, revision))

    @torch.no_grad()
    def _generate(self) -> None:
        """Generate until a row ends or others are to join."""
        model, rows, batch = self._store.model, self._rows, self._batch
        begun = [request.tokens for request in rows]
        start = batch.width - torch.tensor(begun, device=batch.ids.device)  # (rows,)
        output = model.generate(
            **batch.inputs,
            neurons=[None if request.found is None else request.found.weights for request in rows],
            answer_start=start,
            max_new_tokens=max(r.sampling.max_tokens - r.tokens for r in rows),
            logits_processor=LogitsProcessorList([_Draw(rows)]),
            stopping_criteria=StoppingCriteriaList([_Step(rows, self._ends, self._leave)]),
            return_dict_in_generate=True,
            **{**GREEDY, "use_cache": True},
        )
        kept = [row for row, request in enumerate(rows) if not request.ended]
        batch.keep(kept, output)
        self._rows = [rows[row] for row in kept]

    def _leave(self, steps: int, ended: int) -> bool:
        """True where the batch is to be made up anew: for those who wait, or since most of its rows have ended."""
        if self._waiting and steps >= JOIN_AFTER and (ended or len(self._rows) < self._size):
            return True
        return 2 * ended >= len(self._rows)


class _Step(StoppingCriteria):
    """Hands each row its new token; ends the rows that are done, or all where the batch is to be made up anew."""

    def __init__(self, rows: Sequence[Request], ends: set[int], leave: Callable[[int, int], bool]) -> None:
        self._rows, self._ends, self._leave, self._steps = rows, ends, leave, 0

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        self._steps += 1
        for request, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not request.ended:
                request.take(token, self._ends)
        ended = [request.ended for request in self._rows]
        if self._leave(self._steps, sum(ended)):
            ended = [True] * len(ended)
        return torch.tensor(ended, device=input_ids.device)


class _Draw(LogitsProcessor):
    """Draws the tokens of rows with a temperature; for the others the likeliest one is left to be taken."""

    def __init__(self, rows: Sequence[Request]) -> None:
        self._drawn = [
            (row, request, self._warpers(request.sampling))
            for row, request in enumerate(rows)
            if request.generator is not None
        ]

    @staticmethod
    def _warpers(sampling: Sampling) -> LogitsProcessorList:
        warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        return LogitsProcessorList(warpers)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (rows, vocabulary)."""
        if not self._drawn:
            return scores
        scores = scores.clone()
        for row, request, warpers in self._drawn:
            before: Any = input_ids[row : row + 1]
            own: Any = scores[row : row + 1]
            likely: Tensor = warpers(before, own).softmax(-1)[0]  # (vocabulary,)
            token = torch.multinomial(likely.float().cpu(), 1, generator=request.generator)
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores
