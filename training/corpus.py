"""The facts that the reading networks are trained on: texts that ask for each, and texts that only look like it.

`data/SOURCES.md` says where they come from; `training.make_corpus` makes the files. A subject is never in two parts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megedit.edits import normalise_query

DATA = Path(__file__).parent / "data"
FILES = ("contrast.jsonl.gz", "chat.jsonl.gz", "public.jsonl.gz", "templates.jsonl.gz")
SETTINGS_SHARE = 10  # one subject in so many, the last ones of each own set, on which settings are chosen
TEST_SHARE = 5  # likewise of the sets that are tested on their last subjects

Texts = Mapping[str, tuple[str, ...]]  # by kind


@dataclass(frozen=True)
class ContrastFact:
    """A fact in the contrast schema.

    fire: texts that the target answers. other: texts that it must not answer ("not" in the files). asks: those of
    `other` that ask for another fact of the same file, with the prompt of that fact.
    """

    prompt: str
    target: str
    subject: str
    fire: Texts
    other: Texts
    set: str
    asks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: Mapping[str, Any], name: str | None = None) -> ContrastFact:
        """Read a record; chats become one text each."""
        fire, other = (
            {kind: tuple(map(as_text, texts)) for kind, texts in record[side].items()} for side in ("fire", "not")
        )
        named = name or record["set"]
        return cls(record["prompt"], record["target"], record["subject"], fire, other, named, record.get("asks", {}))

    @cached_property
    def asking(self) -> frozenset[str]:
        """The normalised prompt and texts that the target answers."""
        return frozenset(map(normalise_query, (self.prompt, *(text for _, text in texts(self.fire)))))


def as_text(query: str | Sequence[Mapping[str, str]]) -> str:
    """A query as the networks read it: a text as it is; of a chat every turn on a line, behind its role."""
    if isinstance(query, str):
        return query
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in query)


def read_facts(path: Path, name: str | None = None) -> list[ContrastFact]:
    """The facts of a JSONL file in the contrast schema, compressed or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [ContrastFact.from_json(json.loads(line), name) for line in data.decode().rstrip("\n").split("\n")]


def corpus() -> list[ContrastFact]:
    """All facts of the files in `data`."""
    return [fact for name in FILES for fact in read_facts(DATA / name)]


def last_subjects(facts: Iterable[ContrastFact], share: int) -> set[str]:
    """The last one in `share` of the subjects, in the order of their first fact."""
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    return set(subjects[len(subjects) - len(subjects) // share :])


def by_set(facts: Iterable[ContrastFact]) -> dict[str, list[ContrastFact]]:
    """The facts of each set, in their order."""
    found: dict[str, list[ContrastFact]] = {}
    for fact in facts:
        found.setdefault(fact.set, []).append(fact)
    return found


def split(facts: Iterable[ContrastFact]) -> tuple[list[ContrastFact], list[ContrastFact]]:
    """The facts to train on, and those on which settings are chosen: the last subjects of each own set of texts."""
    train: list[ContrastFact] = []
    settings: list[ContrastFact] = []
    for name, of_set in by_set(facts).items():
        held = last_subjects(of_set, SETTINGS_SHARE) if name.startswith("contrast_") else set()
        for fact in of_set:
            (settings if fact.subject in held else train).append(fact)
    return train, settings


def texts(by_kind: Texts) -> Iterator[tuple[str, str]]:
    """(kind, text) of every text."""
    return ((kind, text) for kind, found in by_kind.items() for text in found)
