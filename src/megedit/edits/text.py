"""Texts as they are compared: queries cleaned of what does not count, and short ids made from them."""

import base64
import hashlib
import re
import unicodedata

# "3. ", "(3) ", "- " and other marks of a list in front of its item; NFKC makes "3. " of other forms of it
_LIST_MARKS = re.compile(r"(?:(?:\(?\d{1,3}[.)]|[-*•‣◦▪])\s+)+(?=\S)")
_INVISIBLE = ("Cc", "Cf")  # Unicode's categories of control and format characters, zero-width ones among them


def clean_query(text: str) -> str:
    """The text of a query without what its writer did not mean: invisible characters, a list mark in front, spacing.

    Characters that differ in their form only (wide, ligatures, separate accents) become the usual ones (NFKC).
    """
    cleaned = " ".join(unicodedata.normalize("NFKC", _visible(text)).split())
    return cleaned[_list_mark(cleaned) :]


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


def is_blank(text: str) -> bool:
    """True if nothing of the text can be seen: spaces, control and zero-width characters only."""
    return not _visible(text).strip()


def _visible(text: str) -> str:
    if text.isprintable():  # the usual case, at a hundredth of the cost
        return text
    return "".join(
        character
        for character in text
        if character.isspace() or unicodedata.category(character) not in _INVISIBLE
    )  # fmt: skip


def _list_mark(text: str) -> int:
    """The length of the list marks in front of a text."""
    found = _LIST_MARKS.match(text)
    return found.end() if found else 0
