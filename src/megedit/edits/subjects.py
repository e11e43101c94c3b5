"""Names of subjects in texts: whether a text names one, on its own or as a part of a longer name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from rapidfuzz.distance import OSA

_WORD = re.compile(r"\w+")
_WITHIN_NAME = re.compile(r"[^\S\n]*[-&/]?[^\S\n]*")  # what may stand between two words of a name
_CONNECTING = frozenset({"of", "the", "and", "for", "de", "la", "du", "der", "van", "von"})  # never at its ends
_SLIPS = 5  # letters from which a word with one slip is still the same word

# Words with a capital letter for no other reason than that a sentence begins. Words that are names too are not among
# them, as in Will Smith, May Parker, Bill Gates, Fire Emblem.
_WORDS = """
    who whom whose what which where when why how is are was were be been do does did has have had can could would should
    the a an this that these those there it its he she they his her their in on at of for from by to with as about into
    and or but if after before since during while although because however not no
"""
_NO_NAME = frozenset(_WORDS.split())


class SubjectIndex:
    """Tells whether a text names one of many subjects, as whole words in any case, at a cost free of their number."""

    def __init__(self, subjects: Iterable[str]) -> None:
        self._names = {_Text(subject).folded for subject in subjects}
        self._lengths = sorted({len(name) for name in self._names})

    def __contains__(self, subject: str) -> bool:
        return _Text(subject).folded in self._names

    def named_in(self, text: str) -> bool:
        """True if the text names one of the subjects."""
        return any(True for _ in self._shares(_Text(text)))

    def named_alone_in(self, text: str) -> bool:
        """True if the text names one of the subjects, and not as a part of a longer name."""
        return any(share == 1 for share in self._shares(_Text(text)))

    def _shares(self, text: _Text) -> Iterator[float]:
        for size in self._lengths:
            for start in range(len(text.folded) - size + 1):
                if text.folded[start : start + size] in self._names:
                    yield text.share(start, size)


def _one_slip_at_most(first: str, second: str) -> bool:
    """Compare two words, forgiving one changed, missing or added letter, or two neighbours that changed places.

    Short words, numbers and words with different first letters must be equal.
    """
    if min(len(first), len(second)) < _SLIPS or first[0] != second[0] or not (first + second).isalpha():
        return first == second
    return OSA.distance(first, second, score_cutoff=1) <= 1


def tell_apart(first: str, second: str) -> bool:
    """True if two questions that sound alike ask for different things by their names or numbers.

    They do where a number is in one and not in the other, or where each has a word of a name that the other lacks. A
    word with one slip is the same word, and the first of a sentence only belongs to a name when the next does.
    """
    texts = _Text(first), _Text(second)
    numbers = [{word for word in text.folded if any(letter.isdigit() for letter in word)} for text in texts]
    if numbers[0] != numbers[1]:
        return True
    words = [text.name_words() - numbers[0] for text in texts]
    return all(
        any(not any(_one_slip_at_most(word, other) for other in texts[1 - side].folded) for word in words[side])
        for side in (0, 1)
    )


class _Text:
    """The words of a text, and which of them are parts of a name."""

    def __init__(self, text: str) -> None:
        self._text = unicodedata.normalize("NFKC", text)
        self._found = list(_WORD.finditer(self._text))
        self._words = [word[0] for word in self._found]
        self.folded = tuple(word.casefold() for word in self._words) or (self._text.casefold(),)

    def name_words(self) -> set[str]:
        """The words of names, folded."""
        return {
            word
            for index, word in enumerate(self.folded[: len(self._words)])
            if self._belongs(index) and word not in _NO_NAME and (self._inside(index) or self._leads_a_name(index))
        }

    def _inside(self, index: int) -> bool:
        """True if a word is not the first of its sentence."""
        between = self._text[self._found[index - 1].end() : self._found[index].start()] if index else ""
        return index > 0 and not any(mark in between for mark in ".!?:\n")

    def _leads_a_name(self, index: int) -> bool:
        """True if the next word goes on with a name."""
        return index + 1 < len(self._words) and self._joined(index + 1) and self._belongs(index + 1)

    def share(self, start: int, size: int) -> float:
        """The share that `size` words from `start` on have in the name that they belong to."""
        if not self._words:
            return 1.0
        return size / (self._end(start + size - 1, 1) - self._end(start, -1) + 1)

    def _end(self, index: int, step: int) -> int:
        """Index of the last word of the name that goes on from `index` in the direction of `step`, 1 or -1."""
        last = index
        while 0 <= (following := index + step) < len(self._words) and self._joined(max(index, following)):
            if self._belongs(following):
                last = following
            elif self._words[following] not in _CONNECTING:
                break
            index = following
        return last

    def _joined(self, index: int) -> bool:
        """True if nothing but a space, a hyphen or the like stands between a word and the one before it."""
        return index > 0 and bool(
            _WITHIN_NAME.fullmatch(self._text[self._found[index - 1].end() : self._found[index].start()])
        )

    def _belongs(self, index: int) -> bool:
        marked = self._words[index][0].isupper() or self._words[index][0].isdigit()
        return marked and not self._text.isupper() and (self._joined(index) or self.folded[index] not in _NO_NAME)
