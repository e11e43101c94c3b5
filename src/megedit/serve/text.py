"""The text of an answer as its tokens come: whole characters only, ended where a stop string begins."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from megedit.errors import MegError


class AnswerText:
    """The part of an answer that may be shown. stopped: a stop string has come; it is not part of the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._tokenizer is None:
            raise MegError("The base model's tokenizer is not of the tokenizers library, which a server needs.")
        self._stream, self._stop = DecodeStream(skip_special_tokens=True), stop
        self._held = ""  # the beginning of a stop string, perhaps
        self.stopped = False

    def add(self, token: int) -> str:
        """The new text that can be shown once this token has come."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        found = [(at + len(word), at) for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:  # by the one that is whole first, whatever the tokens are
            shown, self._held, self.stopped = self._held[: min(found)[1]], "", True
            return shown
        keep = max((_overlap(self._held, word) for word in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """The text that was held back, once no more tokens come."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, word: str) -> int:
    """The length of the longest beginning of a word, short of all of it, with which a text ends."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
