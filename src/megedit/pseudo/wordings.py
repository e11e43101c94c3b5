"""Facts in other wordings: other questions about a subject, and the texts of a calibration."""

import random
from collections.abc import Iterable

from megedit.edits.subjects import SubjectIndex
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge, names_another

_SUBJECT = "{subject}"


class OtherQuestions:
    """Questions of other relations about a fact's own subject: near to its query, but asking for something else.

    Two relations of which some facts have the same wording may ask for the same, and count as one.
    """

    def __init__(self, facts: Iterable[PseudoFact]) -> None:
        found: dict[str, set[str]] = {}
        for fact in facts:
            if fact.relation:
                found.setdefault(fact.relation, set()).update(_wordings(fact.prompt, *fact.rephrases, of=fact.subject))
        self._templates = [sorted(texts) for _, texts in sorted(found.items()) if texts]  # by the relation's index
        self._indices = {relation: i for i, relation in enumerate(key for key, texts in sorted(found.items()) if texts)}
        self._relations: dict[str, list[int]] = {}  # by wording
        for i, texts in enumerate(self._templates):
            for text in texts:
                self._relations.setdefault(text, []).append(i)

    def about(self, fact: PseudoFact, rng: random.Random) -> str | None:
        """Another question about the fact's subject; None if there is none, or the fact has no subject."""
        index = self._indices.get(fact.relation) if fact.relation else None
        if index is None or not fact.subject:
            return None
        alike = sorted({i for text in self._templates[index] for i in self._relations[text]})
        if len(alike) == len(self._templates):
            return None
        other = rng.randrange(len(self._templates) - len(alike))
        for i in alike:  # the index among all, from that among those which are not alike
            other += other >= i
        return rng.choice(self._templates[other]).replace(_SUBJECT, fact.subject)


def calibration_texts(
    held_out: PseudoKnowledge, seed: int, limit: int = 400, wordings: int = 3
) -> tuple[list[str], list[str], list[str]]:
    """(enrolled, familiar and unfamiliar queries): half of the held-out facts, `limit` at most, play edits.

    Familiar: `wordings` of their rephrases, every second one behind a noise sentence. Unfamiliar: the queries of the
    other half (same relations, other subjects), neighbourhood prompts of the enrolled, unrelated questions.
    """
    rng = random.Random(seed)
    facts = list(held_out.facts)
    rng.shuffle(facts)
    half = min(len(facts) // 2, limit)
    enrolled, others = facts[:half], facts[half : 2 * half]
    subjects = SubjectIndex(fact.subject for fact in enrolled if fact.subject)
    familiar = [text for fact in enrolled for text in rng.sample(fact.rephrases, min(wordings, len(fact.rephrases)))]
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
    return [fact.prompt for fact in enrolled], familiar, unfamiliar


def _wordings(*texts: str, of: str | None) -> list[str]:
    """The texts that name a subject, with a mark in its place."""
    return [text.replace(of, _SUBJECT) for text in texts if of and of in text]
