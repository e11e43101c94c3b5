"""Make the corpus that the reading networks are trained on, from a folder with its sources.

    python -m training.make_corpus --data DIR

DIR holds contrast_*.jsonl, halluedit.jsonl, wikibigedit.jsonl, knowedit_counterfact.jsonl, mquake_edits.jsonl,
counterfact.jsonl, zsre_style.jsonl and zsre.jsonl (data/SOURCES.md). What is tested on stays out: contrast_science,
the last fifth of the subjects of contrast_chat, HalluEditBench, WikiBigEdit and KnowEdit, and of every other set the
subjects that benchmarks edit. Same input, same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.make_shipped_data import records, write
from megedit.edits import normalise_query
from megedit.pseudo.knowledge import PseudoFact
from megedit.pseudo.wordings import OtherQuestions
from megedit.runtime.shipped import shipped
from training.corpus import DATA, TEST_SHARE, ContrastFact, corpus, fact_of, last_subjects, read_facts, split, texts

SEED = 0
TEST_SETS = ("contrast_science",)
PUBLIC = ("halluedit", "wikibigedit", "knowedit_counterfact")
COUNTERFACT_TAIL, ZSRE_TAIL = 4000, 8000  # records at the end of these files that no benchmark edits
OTHERS = 3  # questions of other relations about a fact's subject
MOST_NEIGHBOURS = 3

Json = dict[str, Any]


def main() -> None:
    """Read the folder and write the four files of the corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the sources")
    options = parser.parse_args()
    data: Path = options.data
    tested, asked = tested_subjects(data), asked_texts(data)
    own = [path.stem for path in sorted(data.glob("contrast_*.jsonl")) if path.stem not in TEST_SETS]
    chat = "contrast_chat"
    parts = {
        "contrast": [record for name in own if name != chat for record in named(data, name)],
        "chat": without_last(named(data, chat)),
        "public": [r for name in PUBLIC for r in without_last(named(data, name)) if not is_tested(r, tested)],
        "templates": [record for record in templates(data) if not is_tested(record, tested)],
    }
    for name, part in parts.items():
        left = [kept for record in part if (kept := without(record, asked))]
        write(DATA / f"{name}.jsonl.gz", (json.dumps(record, ensure_ascii=False) for record in left))
        print(f"{name}: {len(left)} facts")
    held_out = [record for fact in split(corpus())[1] if (record := as_pseudo(fact))]
    write(shipped("held_out.jsonl.gz"), (json.dumps(record, ensure_ascii=False) for record in held_out))
    print(f"held out for the calibration of routers: {len(held_out)} facts")


def as_pseudo(fact: ContrastFact) -> Json | None:
    """A settings fact as pseudo-knowledge, its wordings of one text; None where all of them are chats."""
    rephrases = [text for _, text in texts(fact.fire) if "\n" not in text]
    return {"prompt": fact.prompt, "subject": fact.subject, "rephrases": rephrases} if rephrases else None


def tested_subjects(data: Path) -> set[str]:
    """The subjects, folded, of all that benchmarks edit or that is tested on."""
    found: set[str] = set()
    counterfact, zsre_style = records_of(data, "counterfact"), records_of(data, "zsre_style")
    found |= {record["requested_rewrite"]["subject"] for record in counterfact[:-COUNTERFACT_TAIL]}
    found |= {record["subject"] for record in zsre_style[:-ZSRE_TAIL]}
    found |= {record["subject"] for record in records_of(data, "zsre")}
    for name in PUBLIC:
        found |= last_subjects(read_facts(data / f"{name}.jsonl", name), TEST_SHARE)
    return {subject.casefold() for subject in found}


def asked_texts(data: Path) -> set[str]:
    """All that benchmarks ask beside edits' own prompts, normalised: rephrases, neighbours, unrelated questions."""
    found: list[str] = []
    for record in records_of(data, "counterfact")[:-COUNTERFACT_TAIL]:
        for name in ("x_paraphrase_clean", "paraphrase_prompts", "neighborhood_prompts"):
            found += record[name]
    for record in records_of(data, "zsre_style")[:-ZSRE_TAIL] + records_of(data, "zsre"):
        found += [record[name] for name in ("src", "rephrase", "rephrase_2") if record.get(name)]
    found += [record["question"] for record in records_of(data, "nq_locality")]
    return {normalise_query(text) for text in found}


def without(record: Json, asked: set[str]) -> Json | None:
    """The record without these texts; None where its prompt is one of them, or nothing of a side is left."""

    def free(text: Any) -> bool:
        return not isinstance(text, str) or normalise_query(text) not in asked

    sides = {
        side: {kind: kept for kind, found in record[side].items() if (kept := [t for t in found if free(t)])}
        for side in ("fire", "not")
    }
    return {**record, **sides} if free(record["prompt"]) and sides["fire"] else None


def is_tested(record: Json, tested: set[str]) -> bool:
    """Whether the record's subject is one of them."""
    return record["subject"].casefold() in tested


def named(data: Path, name: str) -> list[Json]:
    """The records of a set, with its name and what the corpus needs of them."""
    keys = ("prompt", "target", "subject", "fire", "not")
    return [{"set": name} | {key: record[key] for key in keys} for record in records_of(data, name)]


def without_last(records: list[Json]) -> list[Json]:
    """The records but those of the last subjects, on which is tested."""
    held = last_subjects(map(fact_of, records), TEST_SHARE)
    return [record for record in records if record["subject"] not in held]


def templates(data: Path) -> Iterator[Json]:
    """Facts whose texts come from templates: CounterFact, ZsRE-style questions and MQuAKE's edits."""
    counterfact = [
        Templated(
            rewrite["prompt"].format(rewrite["subject"]),
            record["x_paraphrase_clean"],
            rewrite["target_new"]["str"],
            rewrite["subject"],
            f"counterfact {rewrite['relation_id']}",
            record["neighborhood_prompts"],
        )
        for record in records_of(data, "counterfact")[-COUNTERFACT_TAIL:]
        for rewrite in (record["requested_rewrite"],)
    ]
    zsre = [
        Templated(
            record["src"],
            [record[key] for key in ("rephrase", "rephrase_2") if record.get(key)],
            record["alt"],
            record["subject"],
            f"zsre {record.get('relation_id')}",
        )
        for record in records_of(data, "zsre_style")[-ZSRE_TAIL:]
    ]
    mquake = [
        Templated(
            record["prompt"].format(record["subject"]),
            record["questions"],
            record["target_new"],
            record["subject"],
            f"mquake {record['prompt']}",
        )
        for record in records_of(data, "mquake_edits")
        if record["subject"]
    ]
    for name, facts in {"counterfact": counterfact, "zsre_style": zsre, "mquake": mquake}.items():
        rng = random.Random(SEED)
        questions = OtherQuestions(fact.pseudo for fact in facts)
        seen: set[tuple[str, str]] = set()
        for fact in facts:
            if (key := (fact.subject.casefold(), fact.relation)) in seen or not fact.rephrases:
                continue
            seen.add(key)
            others = {other for _ in range(OTHERS) if (other := questions.about(fact.pseudo, rng))}
            own = {normalise_query(text) for text in (fact.prompt, *fact.rephrases)}
            kinds = {
                "other_relation": sorted(text for text in others if normalise_query(text) not in own),
                "other_entity": fact.neighbours[:MOST_NEIGHBOURS],
            }
            yield {
                "set": name,
                "prompt": fact.prompt,
                "target": fact.target,
                "subject": fact.subject,
                "fire": {"paraphrase": fact.rephrases},
                "not": {kind: found for kind, found in kinds.items() if found},
            }


class Templated:
    """A fact of a relation whose texts are templates, and neighbours that ask the same about other subjects."""

    def __init__(
        self,
        prompt: str,
        rephrases: list[str],
        target: str,
        subject: str,
        relation: str,
        neighbours: Sequence[str] = (),
    ) -> None:
        self.prompt, self.target, self.subject, self.relation = prompt, target, subject, relation
        self.rephrases = [text for text in dict.fromkeys(rephrases) if text != prompt]
        self.neighbours = [text for text in neighbours if subject.casefold() not in text.casefold()]

    @property
    def pseudo(self) -> PseudoFact:
        """The same without its target."""
        return PseudoFact(self.prompt, tuple(self.rephrases), (), self.subject, self.relation)


def records_of(data: Path, name: str) -> list[Json]:
    """The records of a JSONL file."""
    return records(data / f"{name}.jsonl")


if __name__ == "__main__":
    main()
