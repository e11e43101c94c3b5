"""The facts that the reading networks are trained on: texts that ask for each, and texts that only look like it.

`data/SOURCES.md` says where they come from; `training.make_corpus` makes the files. A subject is never in two parts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megedit.edits import chat_text
from megedit.edits.contrast import ContrastFact as ContrastFact
from megedit.edits.contrast import texts as texts

DATA = Path(__file__).parent / "data"
FILES = ("contrast.jsonl.gz", "chat.jsonl.gz", "public.jsonl.gz", "templates.jsonl.gz")
SETTINGS_SHARE = 10  # one subject in so many, the last ones of each own set, on which settings are chosen
TEST_SHARE = 5  # likewise of the sets that are tested on their last subjects


def fact_of(record: Mapping[str, Any], name: str | None = None) -> ContrastFact:
    """The fact of a record of our own files, whose schema is right; chats become one text each."""
    fire, other = (
        {kind: tuple(map(as_text, texts)) for kind, texts in record[side].items()} for side in ("fire", "not")
    )
    named = name or record["set"]
    return ContrastFact(
        record["prompt"], record["target"], record["subject"], fire, other, named, record.get("asks", {})
    )


def as_text(query: str | Sequence[Mapping[str, str]]) -> str:
    """A query as the networks read it: a text as it is, a chat by `chat_text`."""
    return query if isinstance(query, str) else chat_text(query)


def read_facts(path: Path, name: str | None = None) -> list[ContrastFact]:
    """The facts of a JSONL file in the contrast schema, compressed or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [fact_of(json.loads(line), name) for line in data.decode().rstrip("\n").split("\n")]


def corpus() -> list[ContrastFact]:
    """All facts of the files in `data`; those of `data/written` are sets of the name of their file, `written_NAME`."""
    written = [fact for path in written_files() for fact in read_facts(path, f"written_{path.stem}")]
    return [fact for name in FILES for fact in read_facts(DATA / name)] + written


def written_files() -> list[Path]:
    """The files of facts that were written for the training alone, beside the sets from which settings are held out."""
    return sorted((DATA / "written").glob("*.jsonl"))


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
