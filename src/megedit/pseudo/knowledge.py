"""Pseudo-knowledge: facts that are not edited, on which the encoder is tuned and the router calibrated.

`data/SOURCES.md` describes the shipped facts. `PseudoKnowledge.without` takes out all that belongs to an edited fact,
before anything is trained.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from megedit.edits import Edit, normalise_query
from megedit.edits.columns import PlainNames
from megedit.edits.files import read_rows
from megedit.edits.subjects import SubjectIndex
from megedit.errors import MegError
from megedit.runtime.shipped import shipped


@dataclass(frozen=True)
class PseudoFact:
    """A fact in several wordings, and prompts near it that ask for something else (`neighbours`)."""

    prompt: str
    rephrases: tuple[str, ...]
    neighbours: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class PseudoKnowledge:
    """Facts to train on, `noise` sentences to put in front of a query, and `unrelated` questions, about no fact."""

    facts: tuple[PseudoFact, ...]
    noise: tuple[str, ...]
    unrelated: tuple[str, ...]

    def without(self, edits: Iterable[Edit]) -> "PseudoKnowledge":
        """The part without anything that the edits are made of or may be evaluated with.

        A fact goes if its subject is edited, or one of its wordings names an edited subject (other than as a part of
        its own, as in "the Bank of Chile") or is a query or neighbourhood prompt of an edit; a neighbour or unrelated
        question goes for the same reasons.
        """
        edits = list(edits)
        subjects = SubjectIndex(name for edit in edits for name in (edit.subject, *edit.aliases) if name)
        asked = {normalise_query(text) for edit in edits for text in (*edit.asked(), *edit.rephrases, *edit.neighbours)}

        def is_free(text: str, own: str | None = None) -> bool:
            return normalise_query(text) not in asked and not names_another(text, own, subjects)

        return replace(
            self,
            facts=tuple(
                replace(fact, neighbours=tuple(text for text in fact.neighbours if is_free(text)))
                for fact in self.facts
                if not (fact.subject and fact.subject in subjects)
                and all(is_free(text, fact.subject) for text in (fact.prompt, *fact.rephrases))
            ),
            unrelated=tuple(text for text in self.unrelated if is_free(text)),
        )

    def texts(self) -> Iterator[str]:
        """Every query in it."""
        for fact in self.facts:
            yield fact.prompt
            yield from fact.rephrases
            yield from fact.neighbours
        yield from self.unrelated

    def behind_noise(self, query: str, rng: random.Random) -> str:
        """The query behind one of the noise sentences, of which there must be one."""
        return f"{rng.choice(self.noise)} {query}"

    def split(self, held_out: float, seed: int) -> tuple["PseudoKnowledge", "PseudoKnowledge"]:
        """A part for training and a part, a share of `held_out`, for calibration; same seed, same split.

        No subject, noise sentence, unrelated question or neighbour is in both.

        Raises:
            MegError: `held_out` is not between 0 and 1.
        """
        if not 0 < held_out < 1:
            raise MegError(f"held_out is {held_out}; it must be between 0 and 1")
        generator = random.Random(seed)

        def drawn(items: Iterable[str]) -> set[str]:
            pool = list(dict.fromkeys(items))
            return set(generator.sample(pool, round(held_out * len(pool))))

        subjects, noise, unrelated = drawn(map(_group, self.facts)), drawn(self.noise), drawn(self.unrelated)
        training = PseudoKnowledge(
            tuple(fact for fact in self.facts if _group(fact) not in subjects),
            tuple(text for text in self.noise if text not in noise),
            tuple(text for text in self.unrelated if text not in unrelated),
        )
        seen = {text for fact in training.facts for text in fact.neighbours}
        calibration = PseudoKnowledge(
            tuple(
                replace(fact, neighbours=tuple(text for text in fact.neighbours if text not in seen))
                for fact in self.facts
                if _group(fact) in subjects
            ),
            tuple(text for text in self.noise if text in noise),
            tuple(text for text in self.unrelated if text in unrelated),
        )
        return training, calibration


def names_another(text: str, own: str | None, subjects: SubjectIndex) -> bool:
    """True if the text names one of the subjects, other than inside its own one."""
    return subjects.named_in(text.replace(own, "|") if own else text)


def text_key(text: str) -> int:
    """A 64-bit number that is the same for queries which count as the same; adapters keep it of what they have seen."""
    digest = hashlib.blake2b(normalise_query(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def short_key(text: str) -> bytes:
    """The first five bytes of `text_key`: of four million texts, one has by chance the short key of a shipped one."""
    return text_key(text).to_bytes(8, "big", signed=True)[:5]


@cache
def _shipped_seen() -> frozenset[bytes]:
    return frozenset(np.load(shipped("seen.npy"), allow_pickle=False).tolist())


def seen_in_training(text: str) -> bool:
    """True if the shipped encoder or verifier was trained on the text, so that no evaluation may ask it."""
    return short_key(text) in _shipped_seen()


def load_pseudo_knowledge(path: str | Path | None = None) -> PseudoKnowledge:
    """The shipped pseudo-knowledge, or the facts of the user's own file with the shipped noise and unrelated questions.

    A record has `prompt` and at least one of `rephrases`, and optionally `neighbours`, `subject` and
    `relation`; the formats are those of `read_edits`' plain schema. A repeated prompt is read once.

    Raises:
        MegError: the file, or a record of it, cannot be used.
    """
    facts = _read_facts(path or shipped("pseudo.jsonl.gz"))
    noise, unrelated = (shipped(name).read_text("utf-8") for name in ("noise.txt", "unrelated.txt"))
    return PseudoKnowledge(facts, tuple(noise.splitlines()), tuple(unrelated.splitlines()))


def load_held_out() -> PseudoKnowledge:
    """Shipped facts in many wordings, of which the shipped networks have seen nothing, to calibrate the router on."""
    return load_pseudo_knowledge(shipped("held_out.jsonl.gz"))


def _read_facts(path: str | Path) -> tuple[PseudoFact, ...]:
    facts: dict[str, PseudoFact] = {}
    _, rows = read_rows(path, required=("prompt", "rephrases"))
    for row in map(PlainNames(str(path)), rows):
        prompt, rephrases = row.text("prompt"), row.texts("rephrases")
        if not rephrases:
            row.fail("the field `rephrases` is missing or empty; give at least one other wording")
        fact = PseudoFact(
            prompt,
            rephrases,
            row.texts("neighbours"),
            row.optional_answer("subject"),
            row.optional_answer("relation"),
        )
        facts.setdefault(normalise_query(prompt), fact)
    return tuple(facts.values())


def _group(fact: PseudoFact) -> str:
    """The key of the facts that stay together in a split: the subject, or the prompt where there is none."""
    return fact.subject.casefold() if fact.subject else normalise_query(fact.prompt)
