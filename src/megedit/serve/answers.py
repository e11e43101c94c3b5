"""OpenAI's routes: chats, completions and models."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from megedit.serve import engine
from megedit.serve.engine import Decision, Event, Piece
from megedit.serve.errors import ApiError, api_error
from megedit.serve.guard import may_ask
from megedit.serve.openai import (
    MOST_PROMPTS,
    Asking,
    ChatRequest,
    CompletionRequest,
    Form,
    decision_json,
    usage_json,
)
from megedit.serve.prompts import Prompt
from megedit.serve.services import Services, services

logger = logging.getLogger("megedit.serve")

GONE_AFTER = 1.0  # seconds after which it is looked whether the client is still there

routes = APIRouter(dependencies=[Depends(may_ask)], tags=["answers"])


@routes.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    """The model that is served."""
    return {"object": "list", "data": [_model(services(request))]}


@routes.get("/v1/models/{name:path}")
def model(request: Request, name: str) -> dict[str, Any]:
    """The model of that name."""
    own = services(request)
    if name != own.settings.name:
        raise ApiError(404, f"There is no model {name!r}; this is {own.settings.name!r}.", "model_not_found")
    return _model(own)


def _model(own: Services) -> dict[str, Any]:
    return {"id": own.settings.name, "object": "model", "created": own.started, "owned_by": "megedit"}


@routes.post("/v1/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Any:
    """Answer the last turn of a chat.

    `"megedit": {"edits": false}` asks the base model. The field `megedit` of the answer says which edit was used.
    """
    own = services(request)
    body.check(own.settings)
    turns = [turn.plain for turn in body.messages]
    if turns[-1]["role"] != "user":
        raise ApiError(400, "messages: the last turn must be the user's.", "invalid_request", "messages")
    if not turns[-1]["content"].strip():
        raise ApiError(400, "messages: the last turn is empty.", "invalid_request", "messages")
    prompt = await run_in_threadpool(own.prompts.of_chat, turns)
    return await _answer(request, own, body, [prompt], body.limit, chat=True)


@routes.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Any:
    """Go on with texts. The query is found in a text in the adapter's template, or is all of it."""
    own = services(request)
    body.check(own.settings)
    if len(body.prompts) > MOST_PROMPTS:
        raise ApiError(400, f"prompt: one request may have {MOST_PROMPTS}.", "invalid_request", "prompt")
    if not all(body.prompts):
        raise ApiError(400, "prompt: a prompt is empty.", "invalid_request", "prompt")

    def made() -> list[Prompt]:
        make = own.prompts
        return [make.of_text(p) if isinstance(p, str) else make.of_ids(p) for p in body.prompts]

    return await _answer(request, own, body, await run_in_threadpool(made), body.limit, chat=False)


@dataclass
class _Choice:
    """One answer of a request, as far as it has come."""

    index: int
    request: engine.Request
    decision: Decision | None = None
    text: str = ""
    finish: str | None = None
    tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def decided(self) -> dict[str, Any] | None:
        return None if self.decision is None else decision_json(self.decision)


class _Answering:
    """The answers of one request, which come from the engine's thread to the loop of the server."""

    def __init__(self, own: Services, body: Asking, prompts: Sequence[Prompt], limit: int | None) -> None:
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self.own, self.started = own, time.perf_counter()
        self.choices = [
            _Choice(number, self._request(number, body, prompt, limit, choice))
            for number, (prompt, choice) in enumerate((p, c) for p in prompts for c in range(body.choices))
        ]
        own.engine.submit([choice.request for choice in self.choices])

    def _request(self, number: int, body: Asking, prompt: Prompt, limit: int | None, choice: int) -> engine.Request:
        longest = max(len(prompt.plain), len(prompt.edited))
        room = self.own.prompts.window - longest
        tokens = limit or min(self.own.settings.max_tokens, room)
        if tokens > room or room < 1:
            message = f"The prompt has {longest} tokens and the answer may have {tokens}"
            window = self.own.prompts.window
            raise ApiError(400, f"{message}; the model reads {window} in all.", "context_length_exceeded", "max_tokens")
        if tokens > self.own.settings.max_tokens:
            most = self.own.settings.max_tokens
            raise ApiError(400, f"max_tokens is {tokens}; this server allows {most}.", "too_many_tokens", "max_tokens")

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        query = prompt.query if body.edited else None
        return engine.Request(prompt.plain, query, body.sampling(tokens, choice), emit, edited_prompt=prompt.edited)

    async def events(self, request: Request) -> AsyncIterator[tuple[_Choice, Event]]:
        """Events, until all answers have ended; an error is raised, and what runs is cancelled."""
        left, shown = len(self.choices), False
        try:
            while left:
                try:
                    number, event = await asyncio.wait_for(self._events.get(), GONE_AFTER)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                choice = self.choices[number]
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Decision):
                    choice.decision = event
                    edited = event.route is not None and event.route.familiar
                    self.own.metrics.answers.labels(str(edited).lower()).inc()
                else:
                    if event.text and not shown:
                        shown = True
                        self.own.metrics.first_token.observe(time.perf_counter() - self.started)
                    choice.text += event.text
                    if event.finish:
                        choice.finish, choice.tokens = event.finish, event.tokens
                        left -= 1
                yield choice, event
        finally:
            for choice in self.choices:
                choice.request.cancelled = True

    def usage(self) -> dict[str, int]:
        """Counts of tokens; the choices of one prompt count its tokens once."""
        prompts = {id(choice.request.prompt): choice.prompt_tokens for choice in self.choices}
        counts = sum(prompts.values()), sum(choice.tokens for choice in self.choices)
        for kind, count in zip(("prompt", "completion"), counts, strict=True):
            self.own.metrics.tokens.labels(kind).inc(count)
        return usage_json(*counts)


async def _answer(
    request: Request, own: Services, body: Asking, prompts: list[Prompt], limit: int | None, chat: bool
) -> Any:
    """The answer to a request, whole or as a stream."""
    form = Form(f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", chat, own.settings.name)
    answering = _Answering(own, body, prompts, limit)
    if own.settings.log_questions:
        fields = {"request": request.state.request_id, "queries": [prompt.query for prompt in prompts]}
        logger.info("asked", extra=fields)
    if body.stream:
        stream = _stream(request, answering, form, body.with_usage)
        first = await anext(stream)  # so that an error before any text has a status of its own
        return StreamingResponse(_followed(first, stream), media_type="text/event-stream")
    async for _ in answering.events(request):
        pass
    if any(choice.finish is None for choice in answering.choices):
        return JSONResponse({}, 499)  # the client has gone; nobody reads this
    choices = [
        {**form.choice(choice.index, choice.text, str(choice.finish)), "megedit": choice.decided}
        for choice in answering.choices
    ]
    return {**form.whole(choices, answering.usage()), "megedit": answering.choices[0].decided}


async def _stream(request: Request, answering: _Answering, form: Form, with_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    async for choice, event in answering.events(request):
        if isinstance(event, Decision):
            yield _event(form.chunk(choice.index, "", None, first=True, megedit=decision_json(event)))
        elif isinstance(event, Piece):
            if event.text:
                yield _event(form.chunk(choice.index, event.text, None))
            if event.finish:
                yield _event(form.chunk(choice.index, "", event.finish))
    usage = answering.usage()
    if with_usage:
        yield _event(form.usage_chunk(usage))
    yield "data: [DONE]\n\n"


async def _followed(first: str, stream: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream whose first part was taken already. An error ends it, told as OpenAI tells it."""
    yield first
    try:
        async for part in stream:
            yield part
    except Exception as error:
        if (told := api_error(error)).status == 500:
            logger.exception("a stream failed")
        yield _event(told.body)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
