"""Facts in other wordings: other questions about a subject, the words of the edits, the texts of a calibration."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from megedit.edits import Edit
from megedit.edits.subjects import SubjectIndex
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge, names_another

OWN_FACTS = 100  # made in the words of the edits, for each of their relations on average
OWN_WORDINGS = 3  # of such a fact, at most

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


def in_words_of(pseudo: PseudoKnowledge, edits: Sequence[Edit], seed: int) -> PseudoKnowledge:
    """Add facts in the words of the edits' own queries, where these are new; nothing of an edited fact is in them.

    The wordings of a relation are the queries of its edits without their subjects. They are new when most of these
    queries are worded as none of the facts here. A relation with one wording gets no facts: nothing in them would
    be a rephrase. A subject of the facts here, put in two or three wordings of a relation, makes a fact; it need
    not be true, nor make sense.
    """
    wordings = _new_wordings(edits, pseudo.facts)
    if not wordings:
        return pseudo
    known: dict[str, set[str | None]] = {}
    for fact in pseudo.facts:
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
    return replace(pseudo, facts=(*pseudo.facts, *PseudoKnowledge(tuple(made), (), ()).without(edits).facts))


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


def _new_wordings(edits: Iterable[Edit], facts: Iterable[PseudoFact]) -> dict[str, Counter[str]]:
    """Count the wordings of the edits' queries, by relation: of relations with two or more, most of them new.

    A wording is new if none of the facts has it.
    """
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
