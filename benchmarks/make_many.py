"""A hundred thousand edits: the real facts of the data, and facts made of its subjects and relations.

    python -m benchmarks.make_many --data DIR --edits 100000 --out many.jsonl [--seed 0]

Real facts, in this order: counterfact.jsonl, zsre_style.jsonl, wikibigedit.jsonl, halluedit.jsonl and
mquake_edits.jsonl (PokeMQA's questions), without second targets for a subject and relation, or for a prompt.

Made facts put a subject of the data into a relation in which it has no target. Both are real, and so is each wording;
only the pair is made. A relation takes subjects of relations with which it shares some, so that a person is not asked
for its capital. The target is drawn from those of the relation, prompt and rephrase from its wordings; what another
relation asks in the same words is no wording. Some subjects are kept out of all edits: a question about one of these is
the neighbour of a fact that has none of its own.

Each line is an edit with one rephrase and one neighbour; `id` begins with the name of its file, or with `made`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from benchmarks.make_shipped_data import records
from megedit.edits import Edit, EditSet, normalise_query
from megedit.edits.schemas import names
from megedit.runtime.files import write_whole

KEPT_OUT = 0.03  # share of the subjects
LEAST_SHARED = 10  # subjects that two relations have in common, for one to take those of the other
LEAST_WORDS = 4  # of a wording, so that it says what it asks for
PLACE = "{}"


@dataclass
class Relation:
    """A relation as the data has it: its wordings, with a place for the subject, its subjects, and its targets."""

    wordings: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, None] = field(default_factory=dict)  # in their order
    targets: dict[str, None] = field(default_factory=dict)


def many(data: Path, count: int, seed: int) -> Iterator[Edit]:
    """So many edits, the real ones first."""
    rng, real = random.Random(seed), with_relations(list(real_edits(data)))
    relations = relations_of(real)
    subjects = sorted({edit.subject for edit in real if edit.subject})
    kept_out = set(rng.sample(subjects, round(KEPT_OUT * len(subjects))))
    edited = [edit for edit in real if edit.subject not in kept_out]
    edits = EditSet.from_edits(edited, on_conflict="first").edits
    neighbours = Neighbours(relations, kept_out, rng)
    yield from (neighbours.added(edit) for edit in edits[:count])
    made = made_edits(real, relations, kept_out, rng)
    yield from (neighbours.added(edit) for edit, _ in zip(made, range(count - len(edits)), strict=False))


# -- real facts


def real_edits(data: Path) -> Iterator[Edit]:
    """The facts of the data; those that contradict each other, too."""
    for record in records(data / "counterfact.jsonl"):
        fact = record["requested_rewrite"]
        yield Edit(
            id=f"counterfact-{record['case_id']}",
            prompt=fact["prompt"].format(fact["subject"]),
            target=fact["target_new"]["str"],
            subject=fact["subject"],
            relation=fact["relation_id"],
            rephrases=tuple(record["x_paraphrase_clean"][:1]),
            neighbours=tuple(record["neighborhood_prompts"][:1]),
        )
    for number, record in enumerate(records(data / "zsre_style.jsonl")):
        texts = (record["rephrase"], record.get("rephrase_2"))
        yield Edit(
            id=f"zsre_style-{number}",
            prompt=record["src"],
            target=record["alt"],
            subject=record["subject"],
            relation=record["relation_id"],
            rephrases=tuple(text for text in texts if text),
        )
    for name in ("wikibigedit", "halluedit"):
        for number, record in enumerate(records(data / f"{name}.jsonl")):
            others = (record["not"].get("other_entity") or record["not"].get("other_relation") or [])[:1]
            yield Edit(
                id=f"{name}-{number}",
                prompt=record["prompt"],
                target=record["target"],
                subject=record["subject"],
                rephrases=tuple(record["fire"]["paraphrase"]),
                neighbours=tuple(others),
            )
    for number, record in enumerate(records(data / "mquake_edits.jsonl")):
        if not record["target_new"]:
            continue
        about = [text for text in record["questions"] if names(record["subject"]).search(text)]  # some ask back
        if not about:
            continue
        yield Edit(
            id=f"mquake-{number}",
            prompt=about[0],
            target=record["target_new"],
            subject=record["subject"],
            rephrases=tuple(about[1:2]),
        )


def with_relations(edits: Sequence[Edit]) -> list[Edit]:
    """The edits; those that name no relation with the one that others ask for in the same words."""
    known: dict[str, str] = {}
    for edit in edits:
        if edit.relation:
            known |= {wording.casefold(): edit.relation for wording in wordings_of(edit)}

    def found(edit: Edit) -> str | None:
        return next((known[own] for w in wordings_of(edit) if (own := w.casefold()) in known), None)

    return [edit if edit.relation else replace(edit, relation=found(edit)) for edit in edits]


@cache
def wordings_of(edit: Edit) -> list[str]:
    """Prompt and rephrases with a place for the subject; those that name it once."""
    parts = [names(edit.subject or "").split(text) for text in (edit.prompt, *edit.rephrases)]
    return [PLACE.join(around) for around in parts if edit.subject and len(around) == 2]


def relations_of(edits: Iterable[Edit]) -> dict[str, Relation]:
    """The relations that edits name, without wordings that another one has, too."""
    found: defaultdict[str, Relation] = defaultdict(Relation)
    relations_by_wording: defaultdict[str, set[str]] = defaultdict(set)
    for edit in edits:
        if not (edit.subject and edit.relation):
            continue
        relation = found[edit.relation]
        relation.subjects[edit.subject] = relation.targets[edit.target] = None
        for wording in wordings_of(edit):
            relation.wordings[wording] += 1
            relations_by_wording[wording.casefold()].add(edit.relation)
    for name, relation in found.items():
        for wording in list(relation.wordings):
            shared = relations_by_wording[wording.casefold()] != {name}
            if shared or len(wording.split()) < LEAST_WORDS or relation.wordings[wording] < 2:
                del relation.wordings[wording]
    return {name: relation for name, relation in found.items() if relation.wordings}


# -- made facts


def made_edits(
    real: Sequence[Edit], relations: dict[str, Relation], kept_out: set[str], rng: random.Random
) -> Iterator[Edit]:
    """Facts of a subject and a relation for which there is no real one; none is about a subject that is kept out."""
    taken = {(edit.subject, edit.relation) for edit in real}
    prompts = {normalise_query(edit.prompt) for edit in real}
    pairs = [
        (subject, name)
        for name, relation in relations.items()
        if len(relation.wordings) > 1 and len(relation.targets) > 1
        for subject in subjects_for(relation, relations)
        if subject not in kept_out and (subject, name) not in taken
    ]
    rng.shuffle(pairs)
    for number, (subject, name) in enumerate(pairs):
        relation = relations[name]
        prompt, rephrase = (text.replace(PLACE, subject) for text in rng.sample(list(relation.wordings), 2))
        target = rng.choice(list(relation.targets))
        if target != subject and normalise_query(prompt) not in prompts:
            prompts.add(normalise_query(prompt))
            yield Edit(f"made-{number}", prompt, target, subject, name, rephrases=(rephrase,))


def subjects_for(relation: Relation, relations: dict[str, Relation]) -> list[str]:
    """The subjects of relations that share some with this one, in their order."""
    own = relation.subjects.keys()
    shared = [other for other in relations.values() if len(own & other.subjects.keys()) >= LEAST_SHARED]
    return list(dict.fromkeys(subject for other in shared for subject in other.subjects))


# -- neighbours


class Neighbours:
    """Questions about subjects that are in no edit."""

    def __init__(self, relations: dict[str, Relation], kept_out: set[str], rng: random.Random) -> None:
        self._relations, self._rng = relations, rng
        self._subjects = {
            name: [subject for subject in relation.subjects if subject in kept_out]
            for name, relation in relations.items()
        }

    def added(self, edit: Edit) -> Edit:
        """The edit with one rephrase, if it has any, and one neighbour, if there is any."""
        neighbours, subjects = edit.neighbours[:1], self._subjects.get(edit.relation or "")
        if not neighbours and subjects:
            wording = self._rng.choice(list(self._relations[str(edit.relation)].wordings))
            neighbours = (wording.replace(PLACE, self._rng.choice(subjects)),)
        return replace(edit, rephrases=edit.rephrases[:1], neighbours=neighbours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    edits = list(many(options.data, options.edits, options.seed))
    write_whole(options.out, "".join(json.dumps(edit.to_json(), ensure_ascii=False) + "\n" for edit in edits))
    kinds = Counter(edit.id.partition("-")[0] for edit in edits)
    parts = [f"{number:,} {kind}" for kind, number in kinds.items()]
    parts += [f"{sum(bool(getattr(e, name)) for e in edits):,} with {name}" for name in ("rephrases", "neighbours")]
    print(f"{options.out}: {len(edits):,} edits; {', '.join(parts)}")


if __name__ == "__main__":
    main()
