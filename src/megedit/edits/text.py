"""Texts as they are compared: queries cleaned of what does not count, and short ids made from them."""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

# "3. ", "(3) ", "- " and other marks of a list in front of its item; NFKC makes "3. " of other forms of it
_LIST_MARKS = re.compile(r"(?:(?:\(?\d{1,3}[.)]|[-*•‣◦▪])\s+)+(?=\S)")
_TURN = re.compile(r"(user|assistant): ?")
_USER = "user: "
_INVISIBLE = ("Cc", "Cf")  # Unicode's categories of control and format characters, zero-width ones among them


def clean_query(text: str) -> str:
    """The text of a query without what its writer did not mean: invisible characters, a list mark in front, spacing.

    Characters that differ in their form only (wide, ligatures, separate accents) become the usual ones (NFKC).
    """
    cleaned = " ".join(unicodedata.normalize("NFKC", _visible(text)).split())
    marks = _LIST_MARKS.match(cleaned)
    return cleaned[marks.end() :] if marks else cleaned


@lru_cache(maxsize=4096)  # a text is often compared several times in a row
def normalise_query(text: str) -> str:
    """The form in which two queries count as the same: cleaned, without regard to case and closing marks."""
    cleaned = clean_query(text)
    folded = cleaned.casefold()
    if not folded.isascii():  # folding may take the composed form away again
        folded = unicodedata.normalize("NFKC", folded)
    return folded.rstrip("?.!: ") or folded


def query_id(query: str, length: int = 8) -> str:
    """A short id, the same for queries that count as the same: `length` characters of a-z and 2-7, at most 16."""
    digest = hashlib.blake2b(normalise_query(query).encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:length]


def fold(text: str) -> str:
    """An answer as it is compared with others: without space around it, and in lower case."""
    return text.strip().casefold()


def strip_invisible(text: str) -> str:
    """The text without spaces, control and zero-width characters at its ends."""
    text = text.strip()
    while text and not text.isprintable() and (ends := _invisible(text[0]) or _invisible(text[-1])):
        text = text.strip(ends).strip()
    return text


def _visible(text: str) -> str:
    if text.isprintable():  # the usual case, at a hundredth of the cost
        return text
    return "".join(character for character in text if not _invisible(character))


def _invisible(character: str) -> str:
    """The character if it is a control or format character and no space, else nothing."""
    return "" if character.isspace() or unicodedata.category(character) not in _INVISIBLE else character


def chat_text(turns: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the router reads it: each turn of user and assistant on a line, behind its role.

    What the system is told is left out; a single turn of the user stands as it is.
    """
    said = [turn for turn in turns if turn["role"] != "system"]
    if len(said) == 1:
        return said[0]["content"]
    return "\n".join(f"{turn['role']}: {' '.join(turn['content'].split())}" for turn in said)


def user_turns(text: str) -> list[str]:
    """The turns of the user in a text of `chat_text`; none where it is no conversation."""
    lines = text.split("\n")
    if len(lines) < 2 or not all(_TURN.match(line) for line in lines) or not lines[-1].startswith(_USER):
        return []
    return [line.removeprefix(_USER) for line in lines if line.startswith(_USER)]
