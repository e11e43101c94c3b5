"""Make the data that the package ships, from a folder with CounterFact, ZsRE-style and NQ records.

    python -m benchmarks.make_shipped_data --data DIR [--out src/megedit/data]

DIR holds counterfact.jsonl, zsre_style.jsonl and nq_locality.jsonl (see src/megedit/data/SOURCES.md).
The result depends on nothing else. Facts to edit come from the beginning of a file, pseudo-knowledge
from its end.
"""

import argparse
import gzip
import io
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megedit.edits import Edit, normalise_query, read_edits
from megedit.edits.subjects import SubjectIndex
from megedit.pseudo.knowledge import PseudoFact, PseudoKnowledge

SEED = 0
EDITS, EDIT_NEIGHBOURS = 320, 3
HEAD = 1000  # records at the beginning whose subjects the pseudo-knowledge must not touch
COUNTERFACT_TAIL, COUNTERFACT_CAP, PSEUDO_NEIGHBOURS = 4000, 125, 4
ZSRE_TAIL, ZSRE_CAP = 8000, 70
NOISE, UNRELATED_TAIL = 400, 1500
SENTENCE = re.compile(r"(?!.*  )[A-Z][^\n\[\]:{}|=]{18,118}[a-z]\.")


def main() -> None:
    """Read the folder and write the four data files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the three source files")
    parser.add_argument("--out", type=Path, default=Path("src/megedit/data"), help="folder to write to")
    options = parser.parse_args()
    data, out = options.data, options.out

    shipped = read_edits(data / "counterfact.jsonl", limit=EDITS, on_conflict="first")
    facts = [replace(edit, neighbours=edit.neighbours[:EDIT_NEIGHBOURS]) for edit in shipped]
    write(out / "facts.jsonl", (json.dumps(edit.to_json(), ensure_ascii=False) for edit in facts))

    pseudo = pseudo_knowledge(data).without(
        replace(edit, neighbours=()) for edit in head(data / "counterfact.jsonl") + head(data / "zsre_style.jsonl")
    )
    write(out / "pseudo.jsonl.gz", (json.dumps(asdict(f), ensure_ascii=False) for f in pseudo.facts))
    write(out / "noise.txt", pseudo.noise)
    write(out / "unrelated.txt", pseudo.unrelated)
    relations = len({fact.relation for fact in pseudo.facts})
    print(f"{len(facts)} facts to edit; {len(pseudo.facts)} pseudo facts of {relations} relations, ", end="")
    print(f"{len(pseudo.noise)} noise sentences, {len(pseudo.unrelated)} unrelated questions")


def head(path: Path) -> list[Edit]:
    """The first HEAD records, none dropped but those that repeat a query."""
    return list(read_part(path, slice(HEAD)))


def pseudo_knowledge(data: Path) -> PseudoKnowledge:
    """All pseudo-knowledge, before what touches the beginnings of the files is taken out."""
    counterfact = read_part(data / "counterfact.jsonl", slice(-COUNTERFACT_TAIL, None))
    zsre = read_part(data / "zsre_style.jsonl", slice(-ZSRE_TAIL, None))
    known = {fact_key(edit) for edit in counterfact}
    chosen = balanced(counterfact, COUNTERFACT_CAP)
    chosen += balanced((replace(e, neighbours=()) for e in zsre if fact_key(e) not in known), ZSRE_CAP)
    unrelated = [record["question"].strip() for record in records(data / "nq_locality.jsonl")]
    return PseudoKnowledge(
        tuple(without_own_neighbours(chosen)),
        tuple(noise_sentences(data / "counterfact.jsonl")),
        tuple({normalise_query(text): text for text in unrelated[-UNRELATED_TAIL:]}.values()),
    )


def fact_key(edit: Edit) -> tuple[str, str | None]:
    """The key that two records of one fact share, whatever their wording."""
    return (edit.subject or "").casefold(), edit.relation


def balanced(edits: Iterable[Edit], cap: int) -> list[Edit]:
    """At most `cap` edits of each relation, drawn at random."""
    shuffled = list(edits)
    random.Random(SEED).shuffle(shuffled)
    counts: Counter[str | None] = Counter()
    chosen = []
    for edit in shuffled:
        counts[edit.relation] += 1
        if counts[edit.relation] <= cap and edit.rephrases:
            chosen.append(edit)
    return chosen


def without_own_neighbours(edits: list[Edit]) -> Iterable[PseudoFact]:
    """The facts, each without the neighbours that ask for another of them."""
    by_relation: dict[str | None, list[str]] = {}
    for edit in edits:
        by_relation.setdefault(edit.relation, []).append(edit.subject or "")
    index = {relation: SubjectIndex(subjects) for relation, subjects in by_relation.items()}
    for edit in edits:
        neighbours = [text for text in edit.neighbours if not index[edit.relation].named_in(text)]
        yield PseudoFact(
            edit.prompt, edit.rephrases, tuple(neighbours[:PSEUDO_NEIGHBOURS]), edit.subject, edit.relation
        )


def noise_sentences(path: Path) -> list[str]:
    """Sentences that CounterFact puts in front of its paraphrases, none of them from the first records."""
    all_lines = lines(path)
    first = "\n".join(all_lines[:HEAD])
    found: dict[str, None] = {}
    for line in all_lines[-COUNTERFACT_TAIL:]:
        record = json.loads(line)
        for prompt in record["paraphrase_prompts"]:
            for clean in record["x_paraphrase_clean"]:
                sentence = prompt.removesuffix(clean).strip()
                if prompt.endswith(clean) and SENTENCE.fullmatch(sentence):
                    found[sentence] = None
    fresh = [sentence for sentence in found if json.dumps(sentence, ensure_ascii=False)[1:-1] not in first]
    return sorted(random.Random(SEED).sample(fresh, NOISE))


def lines(path: Path) -> list[str]:
    """The records of a JSONL file, undecoded."""
    return path.read_text("utf-8").rstrip("\n").split("\n")


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in lines(path)]


def read_part(path: Path, part: slice) -> tuple[Edit, ...]:
    """The edits of some lines of a file, without second targets."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text("\n".join(lines(path)[part]), "utf-8")
        return read_edits(copy, on_conflict="first").edits


def write(path: Path, texts: Iterable[str]) -> None:
    """Write lines, compressed without a time stamp if the name ends in .gz."""
    data = "".join(f"{text}\n" for text in texts).encode()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as file:
            file.write(data)
        data = packed.getvalue()
    path.write_bytes(data)


if __name__ == "__main__":
    main()
