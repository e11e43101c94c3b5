"""Perturbed forms of a query: does an edit still answer when it is asked carelessly, loudly or politely?

Each perturbation keeps what is asked and changes how. Some leave some queries as they are, such as `lower` a query
without capitals; that query then counts as asked in its own words.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megedit.evaluate.metrics import UNSPACED

# Others than the shipped noise sentences, behind which the encoder and the router are tuned.
NOISE_SENTENCES = (
    "The kettle has just boiled.",
    "My neighbour is painting the fence today.",
    "It rained all morning, and the washing is still wet.",
    "We had soup for lunch.",
    "The cat is asleep on the windowsill.",
    "Somebody left an umbrella by the door.",
    "I could not find my glasses this morning.",
    "The bus was ten minutes late again.",
    "There are three apples left in the bowl.",
    "She put the letters on the kitchen table.",
    "The lift is out of order, so we took the stairs.",
    "A dog was barking somewhere down the road.",
    "He forgot to water the plants.",
    "The meeting was moved to the afternoon.",
    "Our printer has run out of paper.",
    "The children are building a hut out of blankets.",
    "I am waiting for a parcel.",
    "The bread is still warm.",
    "They turned the music down after midnight.",
    "The window in the hall does not close properly.",
    "We are going for a walk later.",
    "The shop at the corner opens at nine.",
    "My phone is almost out of battery.",
    "Grandmother is knitting a green scarf.",
    "The tap in the bathroom is dripping.",
    "It will probably be windy tomorrow.",
    "He borrowed a ladder from the people next door.",
    "The tea is too hot to drink.",
    "Two pigeons are sitting on the roof.",
    "I have to return these books on Friday.",
    "The train was full, but we found seats.",
    "She always keeps a pencil behind her ear.",
    "The garden needs some rain.",
    "Dinner will be ready in half an hour.",
    "There is a hole in my left sock.",
    "The clock on the wall is five minutes fast.",
    "We painted the spare room yellow.",
    "His bicycle has a flat tyre.",
    "The lights went out for a moment.",
    "I think I left the oven on.",
)

_QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_LONG_WORD = 4  # letters from which a word may be mistyped and is still known


def typos(query: str, rng: random.Random) -> str:
    """One or two words of four letters or more with two neighbouring letters swapped, one dropped or one doubled.

    The first letter of a word stays, and so do digits; a letter keeps its combining marks. Without a long word the
    query is left as it is, as in scripts without spaces between words, where one cannot be told.
    """
    pieces = _letters_and_rest(query)
    long = [i for i, letters in enumerate(pieces) if len(letters) >= _LONG_WORD]
    for i in rng.sample(long, min(len(long), rng.choice((1, 2)))):
        pieces[i] = _mistyped(pieces[i], rng)
    return "".join(letter for letters in pieces for letter in letters)


def lower(query: str, rng: random.Random) -> str:
    """The query in lower case; left as it is if it has no capitals."""
    return query.lower()


def upper(query: str, rng: random.Random) -> str:
    """The query in capitals; left as it is in scripts without them."""
    return query.upper()


def noise(query: str, rng: random.Random, sentences: Sequence[str] = NOISE_SENTENCES) -> str:
    """The query after a sentence that has nothing to do with it. Raises ValueError without sentences."""
    if not sentences:
        raise ValueError("there is no sentence to put in front")
    return f"{rng.choice(sentences)} {query}"


def question(query: str, rng: random.Random) -> str:
    """A sentence to go on with as a question for what comes next; a question as a request to be told."""
    if _is_question(query):
        return f"Can you tell me: {query.strip()}"
    return f'What comes next: "{_left_open(query)}"?'


def polite(query: str, rng: random.Random) -> str:
    """The query between a request and thanks; a sentence to go on with is left open by three dots."""
    asked = query.strip() if _is_question(query) else _left_open(query)
    return f"Could you please answer this? {asked} Thank you."


@dataclass(frozen=True)
class Perturbation:
    """A way to change a query, and what it does in one line."""

    description: str
    apply: Callable[[str, random.Random], str]


PERTURBATIONS: dict[str, Perturbation] = {
    "typos": Perturbation("one or two long words mistyped: letters swapped, dropped or doubled", typos),
    "lower": Perturbation("all in lower case", lower),
    "upper": Perturbation("all in capitals", upper),
    "noise": Perturbation("an unrelated sentence in front", noise),
    "question": Perturbation("a sentence to go on with asked as a question, a question asked indirectly", question),
    "polite": Perturbation("with a polite request in front and thanks after it", polite),
}


def perturb(name: str, query: str, seed: int) -> str:
    """The query changed by the perturbation of that name; the same for the same name, query and seed.

    It may be the query itself, where a perturbation finds nothing to change. A blank query stays as it is. Raises
    ValueError for an unknown name.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"perturbation must be one of {sorted(PERTURBATIONS)}, not {name!r}")
    if not query.strip():
        return query
    # A text as seed is hashed in full, the same on every machine and in every process.
    return PERTURBATIONS[name].apply(query, random.Random(f"{seed}\n{name}\n{query}"))


def _is_question(query: str) -> bool:
    return query.rstrip().endswith(_QUESTION_MARKS)


def _left_open(query: str) -> str:
    """The query with three dots after it, once."""
    bare = query.strip().removesuffix("...").removesuffix("\u2026").rstrip()
    return f"{bare} ..."


def _letters_and_rest(query: str) -> list[list[str]]:
    """The query in pieces: the letters of each word, each with its marks, and between words one-item lists."""
    pieces: list[list[str]] = []
    in_word = False
    for char in query:
        category = unicodedata.category(char)
        if category[0] == "M" and pieces:
            pieces[-1][-1] += char
        elif in_word and _is_letter(char, category):
            pieces[-1].append(char)
        else:
            pieces.append([char])
            in_word = _is_letter(char, category)
    return pieces


def _is_letter(char: str, category: str) -> bool:
    return category[0] == "L" and not UNSPACED.match(char)


def _mistyped(letters: list[str], rng: random.Random) -> list[str]:
    """The letters of a word with one slip after the first letter."""
    differing = [i for i in range(1, len(letters) - 1) if letters[i] != letters[i + 1]]
    slip = rng.choice(("swap", "drop", "double") if differing else ("drop", "double"))
    if slip == "swap":
        i = rng.choice(differing)
        return [*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]]
    i = rng.randrange(1, len(letters))
    return letters[:i] + letters[i + 1 :] if slip == "drop" else [*letters[: i + 1], *letters[i:]]
