"""OpenAI's requests and answers: their fields, and what of them is not offered here."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from megedit.serve.engine import Decision, Sampling
from megedit.serve.errors import ApiError
from megedit.serve.settings import ServeSettings

MOST_CHOICES, MOST_PROMPTS = 16, 64
COMPLETION_TOKENS = 16  # of a completion, where nothing is said; as OpenAI has it
NOT_OFFERED = {  # fields that would change the answer, and the values that ask for nothing
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}
IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")


class Strict(BaseModel):
    """A body in which a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid")


def example(**fields: Any) -> ConfigDict:
    """The configuration of a strict body that shows an example in the description of the API."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


class MegEditOptions(Strict):
    """edits: false asks the base model."""

    edits: bool = True


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Asking(BaseModel):
    """The fields that both kinds of request share. Unset, `temperature` is 0: the likeliest token each time."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(max_length=500)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    megedit: MegEditOptions | None = None

    def check(self, settings: ServeSettings) -> None:
        """Raise ApiError for another model, or a field that is unknown or not offered."""
        if self.model != settings.name:
            raise ApiError(404, f"There is no model {self.model!r}; this is {settings.name!r}.", "model_not_found")
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED:
                continue
            if name not in NOT_OFFERED:
                raise ApiError(400, f"The field {name[:100]!r} is not known; correct or remove it.", "unknown_field")
            if value not in NOT_OFFERED[name]:
                raise ApiError(400, f"{name} is not offered by this server; remove it.", "not_offered", name)

    @property
    def edited(self) -> bool:
        """True unless the base model is asked for."""
        return self.megedit is None or self.megedit.edits

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """True where a stream is to end with its counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, tokens: int, choice: int) -> Sampling:
        """The drawing of an answer of so many tokens; each choice has a seed of its own."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        return Sampling(tokens, self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, seed, stop)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    @property
    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Asking):
    """A chat; its last turn is the user's."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": "facts",
                    "messages": [{"role": "user", "content": "Which port does the billing service use?"}],
                    "max_tokens": 50,
                    "megedit": {"edits": True},
                }
            ]
        },
    )

    messages: Annotated[list[Turn], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Asking):
    """Texts to go on with. prompt: a text or token ids, or a list of either."""

    prompt: Annotated[str | list[int] | list[str] | list[list[int]], Field(min_length=1)]

    @property
    def limit(self) -> int | None:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, a text or token ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item, return-value]


def decision_json(decision: Decision) -> dict[str, Any]:
    """The field `megedit` of an answer: the edit that was used, and why, or why none was."""
    route = decision.route
    if route is None:
        none = dict.fromkeys(("edit", "score", "threshold", "neuron", "prompt", "target"))
        return {**none, "by": "off", "revision": decision.revision}
    edit = route.edit
    return {
        "edit": edit and edit.id,
        "score": round(route.score, 4),
        "threshold": round(route.threshold, 4),
        "by": route.by,
        "neuron": route.neuron,
        "revision": decision.revision,
        "prompt": edit and edit.prompt,
        "target": edit and edit.target,
    }


class Form:
    """Answers of one request, in the form of chats or of completions."""

    def __init__(self, name: str, chat: bool, model: str) -> None:
        self.chat = chat
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": name, "created": int(time.time()), "model": model}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer as a whole."""
        return {**self._head, "object": self._kind, "choices": choices, "usage": usage}

    def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        """One choice of it."""
        body: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **body, "finish_reason": finish, "logprobs": None}

    def chunk(self, index: int, text: str, finish: str | None, first: bool = False, **more: Any) -> dict[str, Any]:
        """A part of a stream."""
        role = {"role": "assistant"} if first else {}
        delta = {**role, "content": text} if text or first else {}
        body: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": index, **body, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self._streamed, "choices": [choice], **more}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last part of a stream that ends with its counts."""
        return {**self._head, "object": self._streamed, "choices": [], "usage": usage}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


def usage_json(prompt: int, completion: int) -> dict[str, int]:
    """Counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
