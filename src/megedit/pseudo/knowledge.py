"""Pseudo-knowledge: facts that are not edited, on which the encoder is tuned and the router calibrated.

The shipped facts are described in `data/SOURCES.md`. Whatever belongs to an edited fact is taken out
with `PseudoKnowledge.without` before anything is trained.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

from megedit.edits.edit_set import Edit, normalise_query
from megedit.edits.rows import read_rows
from megedit.edits.subjects import SubjectIndex
from megedit.errors import MegError

_SUBJECT = "{subject}"
OWN_FACTS = 100  # made in the words of the edits, for each of their relations on average
OWN_WORDINGS = 3  # of such a fact, at most


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
    """What training may see: facts, `noise` sentences that can stand in front of a query, and
    `unrelated` questions, about none of the facts."""

    facts: tuple[PseudoFact, ...]
    noise: tuple[str, ...]
    unrelated: tuple[str, ...]

    def without(self, edits: Iterable[Edit]) -> "PseudoKnowledge":
        """The part in which nothing occurs that edits are or may be evaluated with.

        A fact goes if its subject is edited, or one of its wordings names an edited subject (other than as a part of
        its own, as in "the Bank of Chile") or is a query or neighbourhood prompt of an edit; a neighbour or unrelated
        question goes for the same reasons.
        """
        edits = list(edits)
        subjects = SubjectIndex(edit.subject for edit in edits if edit.subject)
        asked = {normalise_query(text) for edit in edits for text in (edit.prompt, *edit.rephrases, *edit.neighbours)}

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

    def in_words_of(self, edits: Sequence[Edit], seed: int) -> "PseudoKnowledge":
        """With facts in the words of the edits' own queries, where these are new; nothing of an edited fact is in them.

        The wordings of a relation are the queries of its edits without their subjects. They are new when most of these
        queries are worded as none of the facts here. A relation with one wording gets no facts: nothing in them would
        be a rephrase. A subject of the facts here, put in two or three wordings of a relation, makes a fact; it need
        not be true, nor make sense.
        """
        wordings = _new_wordings(edits, self.facts)
        if not wordings:
            return self
        known: dict[str, set[str | None]] = {}
        for fact in self.facts:
            if fact.subject:
                known.setdefault(fact.subject, set()).add(fact.relation)
        rng = random.Random(seed)
        subjects = rng.sample(list(known), min(len(known), OWN_FACTS * len(wordings)))
        sizes = [counts.total() for counts in wordings.values()]
        made: list[PseudoFact] = []
        for subject, relation in zip(subjects, rng.choices(list(wordings), sizes, k=len(subjects)), strict=True):
            if relation not in known[subject]:
                drawn = rng.sample(sorted(wordings[relation]), min(OWN_WORDINGS, len(wordings[relation])))
                prompt, *rephrases = (wording.replace(_SUBJECT, subject) for wording in drawn)
                made.append(PseudoFact(prompt, tuple(rephrases), (), subject, relation))
        return replace(self, facts=(*self.facts, *PseudoKnowledge(tuple(made), (), ()).without(edits).facts))

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


class OtherQuestions:
    """What other relations ask, asked about a fact's own subject: near to its query, and yet another question.

    Two relations of which some facts have the same wording may ask for the same, and count as one.
    """

    def __init__(self, facts: Iterable[PseudoFact]) -> None:
        found: dict[str, set[str]] = {}
        for fact in facts:
            if fact.relation:
                found.setdefault(fact.relation, set()).update(_wordings(fact.prompt, *fact.rephrases, of=fact.subject))
        self._templates = {relation: sorted(texts) for relation, texts in sorted(found.items()) if texts}
        self._others = {
            relation: [other for other in self._templates if found[other].isdisjoint(found[relation])]
            for relation in self._templates
        }

    def about(self, fact: PseudoFact, rng: random.Random) -> str | None:
        """Another question about the fact's subject; None if there is none, or the fact has no subject."""
        others = self._others.get(fact.relation) if fact.relation else None
        if not others or not fact.subject:
            return None
        return rng.choice(self._templates[rng.choice(others)]).replace(_SUBJECT, fact.subject)


def _new_wordings(edits: Iterable[Edit], facts: Iterable[PseudoFact]) -> dict[str, Counter[str]]:
    """By relation of the edits, the wordings of their queries and how many have each: relations with two or more, if
    the wordings of most are not those of the facts."""
    worded = {wording for fact in facts for wording in _wordings(fact.prompt, *fact.rephrases, of=fact.subject)}
    found: dict[str, Counter[str]] = {}
    for edit in edits:
        if edit.relation:
            found.setdefault(edit.relation, Counter()).update(_wordings(edit.prompt, of=edit.subject))
    return {
        relation: counts
        for relation, counts in sorted(found.items())
        if len(counts) > 1 and 2 * sum(counts[wording] for wording in counts.keys() - worded) > counts.total()
    }


def _wordings(*texts: str, of: str | None) -> list[str]:
    """The texts that name a subject, with a mark in its place."""
    return [text.replace(of, _SUBJECT) for text in texts if of and of in text]


def names_another(text: str, own: str | None, subjects: SubjectIndex) -> bool:
    """True if the text names one of the subjects, other than inside its own one."""
    return subjects.named_in(text.replace(own, "|") if own else text)


def calibration_texts(
    held_out: PseudoKnowledge, seed: int, limit: int = 400
) -> tuple[list[PseudoFact], list[str], list[str], list[str]]:
    """(enrolled facts, familiar, unfamiliar and near queries): half of the held-out facts play edits.

    Familiar: their rephrases, every second one behind a noise sentence. Unfamiliar: the queries of the other half
    (same relations, other subjects), neighbourhood prompts of the enrolled, unrelated questions. Near: other questions
    about the subjects of the enrolled.
    """
    rng = random.Random(seed)
    facts = list(held_out.facts)
    rng.shuffle(facts)
    half = min(len(facts) // 2, limit)
    enrolled, others = facts[:half], facts[half : 2 * half]
    subjects = SubjectIndex(fact.subject for fact in enrolled if fact.subject)
    familiar = [text for fact in enrolled for text in fact.rephrases]
    familiar = [
        held_out.behind_noise(text, rng) if held_out.noise and i % 2 else text for i, text in enumerate(familiar)
    ]
    unfamiliar = [
        fact.prompt
        for fact in others
        if not (fact.subject and fact.subject in subjects) and not names_another(fact.prompt, fact.subject, subjects)
    ]
    neighbours = [rng.choice(fact.neighbours) for fact in enrolled if fact.neighbours]
    unfamiliar += [text for text in neighbours if not subjects.named_alone_in(text)]
    unfamiliar += rng.sample(held_out.unrelated, min(len(held_out.unrelated), half))
    questions = OtherQuestions(facts)
    near = [text for fact in enrolled if (text := questions.about(fact, rng))]
    return enrolled, familiar, unfamiliar, near


def text_key(text: str) -> int:
    """A 64-bit number that is the same for queries which count as the same; adapters keep it of what they have seen."""
    digest = hashlib.blake2b(normalise_query(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def load_pseudo_knowledge(path: str | Path | None = None) -> PseudoKnowledge:
    """The shipped pseudo-knowledge, or the facts of the user's own file with the shipped noise and
    unrelated questions.

    A record has `prompt` and at least one of `rephrases`, and optionally `neighbours`, `subject` and
    `relation`; the formats are those of `read_edits`' plain schema. A repeated prompt is read once.

    Raises:
        MegError: the file, or a record of it, cannot be used.
    """
    data = files("megedit") / "data"
    if path is not None:
        facts = _read_facts(path)
    else:
        with as_file(data / "pseudo.jsonl.gz") as shipped:
            facts = _read_facts(shipped)
    noise, unrelated = ((data / name).read_text("utf-8") for name in ("noise.txt", "unrelated.txt"))
    return PseudoKnowledge(facts, tuple(noise.splitlines()), tuple(unrelated.splitlines()))


def _read_facts(path: str | Path) -> tuple[PseudoFact, ...]:
    facts: dict[str, PseudoFact] = {}
    _, rows = read_rows(path, columns=("prompt", "rephrases"))
    for row in rows:
        prompt, rephrases = row.text("prompt"), row.texts("rephrases")
        if not rephrases:
            row.fail("the field `rephrases` is missing or empty; give at least one other wording")
        fact = PseudoFact(
            prompt,
            rephrases,
            row.texts("neighbours"),
            row.optional_text("subject"),
            row.optional_text("relation"),
        )
        facts.setdefault(normalise_query(prompt), fact)
    return tuple(facts.values())


def _group(fact: PseudoFact) -> str:
    """What must stay on one side of a split: the subject, or the prompt where there is none."""
    return fact.subject.casefold() if fact.subject else normalise_query(fact.prompt)
