"""Training pairs: a query, an edit (its prompt and target), and whether the query asks for the edit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megedit.edits import normalise_query, user_turns
from training.corpus import ContrastFact, texts
from training.near import Near


class Pair(NamedTuple):
    """kind: of the text, behind `+` for one that asks and `-` for one that does not."""

    query: str
    prompt: str
    target: str
    asks: bool
    kind: str


# How often a fact of a set is drawn; `contrast_` and `written_` are divided among the sets of that beginning, by their
# facts.
SET_WEIGHTS = {
    "contrast_": 0.30,
    "written_": 0.40,
    "contrast_chat": 0.06,
    "halluedit": 0.05,
    "wikibigedit": 0.03,
    "knowedit_counterfact": 0.06,
    "counterfact": 0.04,
    "zsre_style": 0.03,
    "mquake": 0.03,
}
# How often a text of a kind is drawn, against the others of its fact.
FIRE_WEIGHTS = {"alias": 2.0, "context": 1.5, "long_question": 1.5, "buried": 1.5}
OTHER_WEIGHTS = {"other_relation": 2.0, "other_entity": 2.0, "part_unit": 1.5, "bare": 1.5, "context": 1.5}
ASKING = 0.45  # of the pairs
REPEATED = 0.12  # of the pairs that ask: the edit's own prompt, perturbed
REWORDED = 0.25  # of the edits are stated in another wording of theirs
MOVED = 0.3  # of the pairs with the fact's subject on both sides are about another one's, which changes no answer
# Of the pairs that do not ask:
SIBLING, STRANGER, SWAPPED, RENAMED, UNRELATED = 0.12, 0.14, 0.08, 0.12, 0.06
AS_PROMPT = ("paraphrase", "statement", "keywords")
SETS_PER_BATCH = 4  # from which the facts of a batch of triples are
AS_EDIT = ("other_relation", "other_entity", "part_unit", "time_shift")


class Pairs:
    """Draws pairs from facts, by kinds and sets.

    Of the pairs that do not ask, most are a text that looks like the edit; the others are what asks for another fact
    about its subject (SIBLING), what asks for a fact near to it about another subject (STRANGER), the edit's own text
    beside an edit made from one that looks like it (SWAPPED), its text with another fact's subject in it (RENAMED), and
    a question about no fact at all that is near to it (UNRELATED).
    """

    def __init__(self, facts: Sequence[ContrastFact], noise: Sequence[str], near: Near | None = None) -> None:
        self._rng, self._near = random.Random(), near or Near()
        self._perturb = Perturbation(noise, self._rng)
        self._facts = [Known.of(fact, number) for number, fact in enumerate(facts)]
        self._of_set: dict[str, list[Known]] = {}
        self._of_subject: dict[tuple[str, str], list[Known]] = {}
        for known in self._facts:
            self._of_set.setdefault(known.fact.set, []).append(known)
            self._of_subject.setdefault((known.fact.set, known.fact.subject), []).append(known)
        self._sets = sorted(self._of_set)
        groups = [name if name in SET_WEIGHTS else f"{name.partition('_')[0]}_" for name in self._sets]
        sizes = Counter[str]()
        for name, group in zip(self._sets, groups, strict=True):
            sizes[group] += len(self._of_set[name])
        self._weights = [
            SET_WEIGHTS[group] * len(self._of_set[name]) / sizes[group]
            for name, group in zip(self._sets, groups, strict=True)
        ]

    def draw(self, count: int, seed: str) -> list[Pair]:
        """So many pairs; the same seed, the same pairs."""
        self._rng.seed(seed)
        return [self._draw() for _ in range(count)]

    def triples(self, count: int, seed: str) -> list[tuple[str, str, str]]:
        """So many (query, prompt, hard negative), most of few sets, so that they are hard to tell apart.

        The query asks for the fact of the prompt; the hard negative, a query or a prompt, does not.
        """
        rng = self._rng
        rng.seed(seed)
        facts = [
            known
            for name in rng.choices(self._sets, self._weights, k=SETS_PER_BATCH)
            for known in rng.choices(self._of_set[name], k=count // SETS_PER_BATCH)
        ]
        found = []
        for known in {known.fact.prompt: known for known in facts}.values():  # each prompt once
            fact = known.fact
            query = rng.choices([text for _, text in known.fire], known.fire_weights)[0] if known.fire else fact.prompt
            negatives = [text for kind, text in known.other if kind in AS_EDIT]
            strangers = (other.fact.prompt for other in facts if normalise_query(other.fact.prompt) not in fact.asking)
            if negatives := negatives or list(strangers):
                found.append((self._perturb(query), fact.prompt, rng.choice(negatives)))
        return found

    def _draw(self) -> Pair:
        rng = self._rng
        known = rng.choice(self._of_set[rng.choices(self._sets, self._weights)[0]])
        fact = known.fact
        prompt, target = self._stated(known), fact.target
        asks = rng.random() < ASKING
        if asks:
            kind, query = "repeated", fact.prompt
            if known.fire and rng.random() >= REPEATED:
                kind, query = rng.choices(known.fire, known.fire_weights)[0]
        else:
            found = self._other(known)
            if found is None:
                return self._draw()
            kind, query, *edit = found
            if edit:
                prompt, target = edit
        if rng.random() < MOVED:
            query, prompt = self._moved(known, query, prompt)
        return Pair(self._perturb(query), prompt, target, asks, f"{'+' if asks else '-'}{kind}")

    def _moved(self, known: Known, query: str, prompt: str) -> tuple[str, str]:
        """Query and prompt with the name of another fact's subject in place of the fact's, where both have that."""
        own, other = known.fact.subject, self._rng.choice(self._of_set[known.fact.set]).fact.subject
        if own and other and own in query and own in prompt and not known.names(other):
            return query.replace(own, other), prompt.replace(own, other)
        return query, prompt

    def _other(self, known: Known) -> tuple[str, ...] | None:
        """(kind, query) or (kind, query, prompt, target) of what does not ask; None where there is none."""
        rng, fact = self._rng, known.fact
        drawn = rng.random()
        if drawn < SIBLING:
            other = rng.choice(self._of_subject[fact.set, fact.subject])
            kind, query = rng.choice([("prompt", other.fact.prompt), *other.fire])
            if other.fact.prompt != fact.prompt and normalise_query(query) not in fact.asking:
                return f"sibling {kind}", query
        elif drawn < SIBLING + STRANGER and known.number in self._near.facts:
            other = self._facts[rng.choice(self._near.facts[known.number])]
            _, query = rng.choice([("prompt", other.fact.prompt), *other.fire])
            if normalise_query(query) not in fact.asking:
                return "stranger", query
        elif drawn < SIBLING + STRANGER + SWAPPED and known.swappable:
            _, prompt = rng.choice(known.swappable)
            _, query = rng.choice([("prompt", fact.prompt), *known.fire])
            if normalise_query(prompt) not in fact.asking:
                return "swapped", query, prompt, rng.choice(self._of_set[fact.set]).fact.target
        elif drawn < SIBLING + STRANGER + SWAPPED + RENAMED:
            other = rng.choice(self._of_set[fact.set])
            _, query = rng.choice([("prompt", fact.prompt), *known.fire])
            if fact.subject and fact.subject in query and not other.names(fact.subject):
                return "renamed", query.replace(fact.subject, other.fact.subject)
        elif drawn < SIBLING + STRANGER + SWAPPED + RENAMED + UNRELATED and self._near.questions:
            query, numbers = rng.choice(self._near.questions)
            other = self._facts[rng.choice(numbers)]
            return "unrelated", query, self._stated(other), other.fact.target
        if not known.other:
            return None
        kind, query = rng.choices(known.other, known.other_weights)[0]
        return kind, query

    def _stated(self, known: Known) -> str:
        """The edit's prompt: as it is written, or one of its other wordings."""
        if known.wordings and self._rng.random() < REWORDED:
            return self._rng.choice(known.wordings)
        return known.fact.prompt


@dataclass(frozen=True)
class Known:
    """A fact with its texts in lists. number: its place among the facts."""

    fact: ContrastFact
    number: int
    fire: list[tuple[str, str]]
    other: list[tuple[str, str]]
    fire_weights: list[float]
    other_weights: list[float]
    wordings: list[str]
    swappable: list[tuple[str, str]]

    @classmethod
    def of(cls, fact: ContrastFact, number: int) -> Known:
        """From the fact."""
        fire, other = list(texts(fact.fire)), list(texts(fact.other))
        other = [(kind, text) for kind, text in other if normalise_query(text) not in fact.asking]
        return cls(
            fact,
            number,
            fire,
            other,
            [FIRE_WEIGHTS.get(kind, 1.0) for kind, _ in fire],
            [OTHER_WEIGHTS.get(kind, 1.0) for kind, _ in other],
            [text for kind in AS_PROMPT for text in fact.fire.get(kind, ())],
            [(kind, text) for kind in AS_EDIT for text in fact.other.get(kind, ()) if len(text) < 200],
        )

    def names(self, subject: str) -> bool:
        """Whether this fact is about that subject, or one that holds or is held by its name."""
        own, other = self.fact.subject.casefold(), subject.casefold()
        return own in other or other in own


BEFORE = (
    "Hi! {}", "Hello, {}", "Quick question: {}", "Please tell me: {}", "Could you tell me this? {}", "hey, {}",
    "I need to know this for work. {}", "Answer in one word. {}", "Be brief. {}", "Question: {}", "Q: {}",
    "Sorry to bother you, but {}", "Good morning. {}", "One more thing: {}", "Next question. {}", "User: {}",
    "Answer the following question: {}", "Say only the answer. {}", "A colleague asked me: {}", "ok so {}",
)  # fmt: skip
BEHIND = (
    "{} Thanks!", "{} Please answer briefly.", "{} Answer in a few words.", "{} I can't find it anywhere.",
    "{}\nAnswer:", "{} A:", "{} Many thanks in advance.", "{} pls", "{} Just the answer, please.", "{} (short answer)",
    "{} I have to fill in a form.", "{} Anyone?", "{} I always forget.", "{} It's for a quiz.",
)  # fmt: skip


class Perturbation:
    """What people do to a text without changing what it asks: wrap it, mistype it, put something in front."""

    def __init__(self, noise: Sequence[str], rng: random.Random) -> None:
        self._noise, self._rng = noise, rng
        self._steps: list[tuple[float, Callable[[str], str]]] = [
            (0.12, lambda text: f"{rng.choice(self._noise)} {text}"),
            (0.10, lambda text: rng.choice(BEFORE).format(text)),
            (0.08, lambda text: rng.choice(BEHIND).format(text)),
            (0.10, self._mistyped),  # before case is lost, by which it knows names
            (0.10, str.lower),
            (0.01, str.upper),
            (0.10, lambda text: text.rstrip("?. ")),
            (0.02, lambda text: f'"{text}"'),
        ]

    def __call__(self, text: str) -> str:
        """The text, in about half of the cases changed; of a conversation, its last turn. Braces are left alone."""
        if user_turns(text):
            before, user, last = text.rpartition("\nuser: ")
            return before + user + " ".join(self(last).split())
        for share, step in self._steps:
            if self._rng.random() < share:
                text = step(text)
        return text

    def _mistyped(self, text: str) -> str:
        """One letter dropped, doubled or swapped with the next, in a word that is no name and no number."""
        words = text.split(" ")
        able = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha() and word.islower()]
        if not able:
            return text
        i = self._rng.choice(able)
        word, at = words[i], self._rng.randrange(len(words[i]) - 1)
        words[i] = self._rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[: at + 1] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            )
        )
        return " ".join(words)
