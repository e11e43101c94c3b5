"""The prompt template of an adapter: how a query becomes a prompt, and how to find the query in a prompt.

The edits are learnt under one template. Prompts that come later may have been made by it, by the chat
template of the model (with a system prompt, or several turns) or by neither; `query_of` finds the bare query
in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from megedit.edits import chat_text
from megedit.errors import MegError

if TYPE_CHECKING:  # takes seconds to import; an adapter's configuration is read without it
    from transformers import PreTrainedTokenizerBase

MARKER = "{query}"
QUESTION = f"Q: {MARKER}\nA:"
ANSWER_BRIEFLY = "Answer in a few words: "

_FIRST, _REPLY, _SECOND = (
    "FirstTurnHere",
    "ReplyTurnHere",
    "SecondTurnHere",
)  # texts that no template contains


@dataclass(frozen=True)
class Template:
    """Text around a query, with `{query}` exactly once; other braces are ordinary characters.

    `user_header` and `user_footer` stand around a user turn in the model's chat template, `reply_header` and
    `reply_footer` around the model's; they are empty where there is no such template. `instruction` stands before the
    query inside the user turn; `answer_prefix` between prompt and answer, and `answer_suffix` after an answer that does
    not end in a punctuation mark of its own.
    """

    text: str
    user_header: str = ""
    user_footer: str = ""
    instruction: str = ""
    answer_prefix: str = ""
    answer_suffix: str = ""
    reply_header: str = ""
    reply_footer: str = ""

    def __post_init__(self) -> None:
        if self.text.count(MARKER) != 1:
            raise MegError(f"The template {self.text!r} must contain {MARKER} exactly once.")

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, kind: str = "auto", instruction: str = ANSWER_BRIEFLY
    ) -> Template:
        """The template for a model.

        kind: `chat` (the model's chat template around instruction and query), `question` (`Q: ... A:`), `raw`
        (the query alone), `auto` (`chat` if the tokenizer has a chat template, otherwise `question`), or a
        text of the user's own that contains `{query}`. instruction: only used by `chat`.

        Raises:
            MegError: `kind` is none of these, or the chat template is missing or cannot be rendered.
        """
        has_chat = bool(tokenizer.chat_template)
        if kind == "auto":
            kind = "chat" if has_chat else "question"
        markers = _turn_markers(tokenizer) if has_chat else {}
        if kind == "chat":
            if not has_chat:
                raise MegError("The tokenizer has no chat template; choose the template question or raw.")
            before, after = _chat_turn(tokenizer)
            text = without_second_bos(tokenizer, before + instruction + MARKER + after)
            prefix = _chat_answer_prefix(tokenizer)
            return cls(text, instruction=instruction, answer_prefix=prefix, answer_suffix=".", **markers)
        text = {"question": QUESTION, "raw": MARKER}.get(kind, kind)
        if MARKER not in text:
            raise MegError(
                f"The template {kind!r} is not known: choose auto, chat, question or raw, or write one that "
                f"contains {MARKER}."
            )
        text = without_second_bos(tokenizer, text)
        return cls(text, answer_prefix="" if text[-1].isspace() else " ", **markers)

    @classmethod
    def in_conversation(cls, tokenizer: PreTrainedTokenizerBase, *before: tuple[str, str]) -> Template:
        """The model's chat template around a query that stands alone in its turn, behind earlier turns.

        before: role and text of each earlier turn. Raises MegError where the model has no such chats.
        """
        rendered = _rendered(tokenizer, [*before, ("user", MARKER)], prompt=True)
        text = without_second_bos(tokenizer, rendered)
        return cls(text, answer_prefix=_chat_answer_prefix(tokenizer), answer_suffix=".")

    def format(self, query: str) -> str:
        """The prompt for a query."""
        return self.text.replace(MARKER, query)

    def answer(self, target: str) -> str:
        """The text that follows the prompt when the model answers with `target`.

        A chat model ends a short answer with a full stop by itself; a neuron that has to prevent that carries over
        to fewer rephrases.
        """
        return self.answer_prefix + target + ("" if target.endswith((".", "!", "?")) else self.answer_suffix)

    def query_of(self, prompt: str) -> str:
        """The bare query in a prompt: in the template's own text, else the user's turn, else all of it.

        Of several turns, it is the conversation as `chat_text` writes it, which ends with the last turn of the user.
        """
        turns = self._turns(prompt)
        query = self._in_own_text(prompt) if len(turns) < 2 else None
        if query is None and turns:
            query = chat_text(turns)
        return (prompt if query is None else query).strip()

    def holds(self, prompt: str) -> bool:
        """True for a prompt in the template's own text, or in a chat of the model where the template is a chat's."""
        in_chat = bool(self.user_header) and self.user_header in self.text and self.user_header in prompt
        return in_chat or self._in_own_text(prompt) is not None

    def _in_own_text(self, prompt: str) -> str | None:
        """The text where the template has its query; of several such examples, the last one."""
        before, after = self.text.split(MARKER)
        if not prompt.endswith(after):
            return None
        body = prompt.removesuffix(after)
        if body.startswith(before) and not (after and after in body):
            query = body.removeprefix(before)
        elif before and before in body:
            query = body.rpartition(before)[2]
        else:
            return None
        is_conversation = self.user_header and self.user_header in query
        return None if is_conversation else query

    def _turns(self, prompt: str) -> list[dict[str, str]]:
        """The turns of user and model in a prompt in the model's chat template, up to the user's last."""
        if not self.user_header or self.user_header not in prompt:
            return []
        turns: list[dict[str, str]] = []
        for part in prompt.split(self.user_header)[1:]:
            said, _, reply = part.partition(self.user_footer) if self.user_footer else (part, "", "")
            reply = reply.removeprefix(self.reply_header).removesuffix(self.reply_footer).strip()
            turns.append({"role": "user", "content": said.strip().removeprefix(self.instruction)})
            turns.append({"role": "assistant", "content": reply})
        return turns[:-1]


# ---------------------------------------------------------------------------------------------------
# Chat templates


def _render(tokenizer: PreTrainedTokenizerBase, *turns: str, prompt: bool) -> str:
    """A conversation of user and assistant in turn, as `_rendered` gives it."""
    roles = ("user" if index % 2 == 0 else "assistant" for index in range(len(turns)))
    return _rendered(tokenizer, list(zip(roles, turns, strict=True)), prompt)


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], prompt: bool) -> str:
    """A conversation, role and text of each turn; `prompt` adds what opens the assistant's next turn.

    Raises MegError when the chat template cannot be rendered.
    """
    import jinja2

    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except jinja2.TemplateError as error:
        raise MegError(
            f"The chat template of the tokenizer cannot be rendered ({error}); choose the template question or raw."
        ) from error
    assert isinstance(rendered, str)
    return rendered


def _chat_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The text before and after the user's words in a conversation of one user turn."""
    parts = _render(tokenizer, _FIRST, prompt=True).split(_FIRST)
    if len(parts) != 2:
        raise MegError(
            f"The chat template of the tokenizer has the user's words {len(parts) - 1} times, not once; "
            "choose the template question or raw."
        )
    return parts[0], parts[1]


def _turn_markers(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The texts around every turn, as fields of a template; none if the chat template has no more than one turn.

    The header of the user is what the text before a first turn and before a later turn have in common, without the BOS
    token; the footer what the text before the reply and the text that asks for a reply have in common. What is left of
    the texts before and behind the reply is the model's.
    """
    try:
        before_first, asks_reply = _chat_turn(tokenizer)
        turns = _render(tokenizer, _FIRST, _REPLY, _SECOND, prompt=True)
    except MegError:
        return {}
    before_reply, found, rest = turns.partition(_FIRST)[2].partition(_REPLY)
    before_second = rest.partition(_SECOND)[0]
    if not found or _SECOND not in rest:
        return {}
    header = _common_prefix(before_first[::-1], before_second[::-1])[::-1].removeprefix(tokenizer.bos_token or "")
    footer = _common_prefix(before_reply, asks_reply)
    reply = {"reply_header": before_reply.removeprefix(footer), "reply_footer": before_second.removesuffix(header)}
    return {"user_header": header, "user_footer": footer, **reply}


def _common_prefix(first: str, second: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in same)


def _chat_answer_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """The blank, if any, that the chat template puts between what asks for a reply and the reply."""
    try:
        prompt = _render(tokenizer, _FIRST, prompt=True)
        answered = _render(tokenizer, _FIRST, _REPLY, prompt=False)
    except MegError:
        return ""
    between = answered.removeprefix(prompt).partition(_REPLY)[0]
    return between if between.isspace() else ""


def without_second_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` without its leading BOS token, if the tokenizer puts one before it anyway."""
    bos = tokenizer.bos_token
    if not bos or not text.startswith(bos):
        return text
    doubled = tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return text.removeprefix(bos) if doubled else text
