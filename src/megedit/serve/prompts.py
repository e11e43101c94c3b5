"""From a request to token ids, and the query in it, which is found as `MegModel` finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from megedit.errors import MegError
from megedit.lm.template import without_second_bos
from megedit.model import MegModel


@dataclass(frozen=True)
class Prompt:
    """query: for the router. plain: token ids. edited: those used where an edit fires."""

    query: str
    plain: list[int]
    edited: list[int]


class PromptMaker:
    """Makes prompts for the model of a server. Several threads may use one."""

    def __init__(self, model: MegModel) -> None:
        self._tokenizer, self._template = model.tokenizer, model.adapter.config.template
        self._encode = model.encode
        config = model.base.config.get_text_config()
        self.window = int(getattr(config, "max_position_embeddings", 0) or 0) or 1 << 20

    def of_chat(self, messages: Sequence[dict[str, str]]) -> Prompt:
        """The prompt of a chat whose last turn is the user's.

        An edit holds best in the form in which it was made: where one fires, the last turn has the adapter's
        instruction before it. Raises MegError where the model's chat template refuses the chat.
        """
        last, template = messages[-1]["content"], self._template
        alone = len(messages) == 1
        if not self._tokenizer.chat_template:
            if not alone:
                raise MegError("The base model has no chat template; send one turn of the user, or use completions.")
            ids = self._encode(template.format(last))
            return Prompt(last.strip(), ids, ids)
        text = self._rendered(messages)
        plain = self._encode(text)
        query = template.query_of(text)
        if alone:
            edited = self._encode(template.format(last))
        elif template.instruction:
            instructed = {**messages[-1], "content": template.instruction + last}
            edited = self._encode(self._rendered([*messages[:-1], instructed]))
        else:
            edited = plain
        return Prompt(query, plain, edited)

    def of_text(self, text: str) -> Prompt:
        """The prompt of a text as it is."""
        ids = self._encode(text)
        return Prompt(self._template.query_of(text), ids, ids)

    def of_ids(self, ids: list[int]) -> Prompt:
        """The prompt of token ids as they are. Raises MegError where the model has no such tokens."""
        if any(not 0 <= token < len(self._tokenizer) for token in ids):
            raise MegError(f"prompt: a token id is not one of the model's, which are 0 to {len(self._tokenizer) - 1}.")
        text = str(self._tokenizer.decode(ids, skip_special_tokens=False))
        return Prompt(self._template.query_of(text), ids, ids)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise MegError(f"messages: the model's chat template refuses this chat ({error}).") from error
        return without_second_bos(self._tokenizer, str(text))
