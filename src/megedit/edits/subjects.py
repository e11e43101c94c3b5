"""Names of subjects in texts: whether a text names one, on its own or as a part of a longer name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from rapidfuzz.distance import OSA
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_WORD = re.compile(r"\w+")
_WITHIN_NAME = re.compile(r"[^\S\n]*[-&/]?[^\S\n]*")  # what may stand between two words of a name
_CONNECTING = frozenset({"of", "the", "and", "for", "de", "la", "du", "der", "van", "von"})  # never at its ends
_SLIPS = 5  # letters from which a word with one slip is still the same word
_CHANGED = 2 / 3  # what naming a subject by a changed name counts beside naming it
_NO_NAME = ENGLISH_STOP_WORDS | {"did", "does"}  # where a sentence begins, their capital letter tells nothing


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


def share_of_name(text: str, subject: str) -> float:
    """How much of a name in the text the subject is, between 0 and 1.

    1: the text names the subject on its own. Less: as a part of a longer name, 1/3 for Chile in "the Bank of Chile"; or
    by a changed name, 2/3 for "Mahabbad Republic" where the Republic of Mahabad is meant: all words are there, in any
    order, each with one slip at most. 0: not at all. Capital letters tell what belongs to a name; where a text has
    none, or nothing else, it names everything on its own.
    """
    words = _Text(text)
    return max(SubjectIndex([subject])._shares(words), default=0.0) or _CHANGED * _share_changed(words, subject)


def _share_changed(text: _Text, subject: str) -> float:
    """How much of a name in the text the words of the subject are, wherever they stand and be there slips in them."""
    places = []
    for meant in _Text(subject).folded:
        if meant in _CONNECTING:
            continue
        place = next((place for place, word in enumerate(text.folded) if _one_slip_at_most(word, meant)), None)
        if place is None:
            return 0.0
        places.append(place)
    return text.share(min(places), max(places) - min(places) + 1) if places else 0.0


def _one_slip_at_most(first: str, second: str) -> bool:
    """Whether two words are the same but for one letter, or for two neighbouring ones that changed places.

    Short words, numbers and words that begin differently are the same only when nothing differs.
    """
    if min(len(first), len(second)) < _SLIPS or first[0] != second[0] or not (first + second).isalpha():
        return first == second
    return OSA.distance(first, second, score_cutoff=1) <= 1


class _Text:
    """The words of a text, and which of them are parts of a name."""

    def __init__(self, text: str) -> None:
        self._text = unicodedata.normalize("NFKC", text)
        self._found = list(_WORD.finditer(self._text))
        self._words = [word[0] for word in self._found]
        self.folded = tuple(word.casefold() for word in self._words) or (self._text.casefold(),)

    def share(self, start: int, size: int) -> float:
        """How much of the name that holds these words they are."""
        if not self._words:
            return 1.0
        return size / (self._end(start + size - 1, 1) - self._end(start, -1) + 1)

    def _end(self, place: int, step: int) -> int:
        """Where the name that goes on from this word ends in one direction."""
        last = place
        while 0 <= (following := place + step) < len(self._words) and self._joined(max(place, following)):
            if self._belongs(following):
                last = following
            elif self._words[following] not in _CONNECTING:
                break
            place = following
        return last

    def _joined(self, place: int) -> bool:
        """Whether a word and the one before it may belong to one name."""
        return place > 0 and bool(
            _WITHIN_NAME.fullmatch(self._text[self._found[place - 1].end() : self._found[place].start()])
        )

    def _belongs(self, place: int) -> bool:
        marked = self._words[place][0].isupper() or self._words[place][0].isdigit()
        return marked and not self._text.isupper() and (self._joined(place) or self.folded[place] not in _NO_NAME)
