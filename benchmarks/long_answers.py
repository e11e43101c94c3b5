"""Long answers: edits of about a hundred tokens each, asked word for word.

    python -m benchmarks.long_answers --data DIR --edits 600

DIR holds unke.jsonl (UnKEBench, arXiv 2405.15349): questions with answers of several sentences, a paraphrase of each,
and questions about parts of the answer. Exact: the whole answer, word for word. ROUGE-L: against the whole answer, or
the part. Greedy answers; the unedited model beside. Writes results/long_answers.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import BASE, base_name, on_device, suffix, write_result
from benchmarks.edits import fit_or_load
from benchmarks.make_shipped_data import records
from megedit import MegModel
from megedit.edits import Edit, EditSet
from megedit.evaluate.metrics import long_answer
from megedit.evaluate.systems import MegSystem
from megedit.settings import FitSettings

ROOM = 8  # tokens that an answer may be longer than its reference
AT_ONCE = 32  # questions


def main() -> None:
    """Fit, ask, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=600)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = records(options.data / "unke.jsonl")[: options.edits]
    edits = EditSet.of(
        [Edit(str(r["id"]), r["question"], r["answer"], rephrases=(r["para_question"],)) for r in found], "unke"
    )
    name = f"long_answers{suffix(options.base)}{on_device(options.device)}"
    out = Path("adapters") / f"{name}_{options.edits}"
    spent = fit_or_load(options.base, edits, out, FitSettings(seed=options.seed), options.device)
    model = MegModel.from_pretrained(out, base=options.base, device=options.device)
    edited = MegSystem(model, "edited")
    kept = {edit.id for edit in edits}
    found = [record for record in found if str(record["id"]) in kept]
    questions = {
        "question": [(r["question"], r["answer"]) for r in found],
        "paraphrase": [(r["para_question"], r["answer"]) for r in found],
        "part": [(q, a) for r in found for q, a in zip(r["sub_question"], r["sub_answer"], strict=True)],
    }
    rows = {
        f"{system.name}, {kind}": asked(system, pairs)
        for kind, pairs in questions.items()
        for system in (edited, edited.unedited())
    }
    settings = {"edits": len(edits), "base": base_name(options.base), "seed": options.seed}
    print(write_result(name, settings, {"rows": rows, "spent": spent, "tokens": tokens(model, edits)}))


def asked(system: MegSystem, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Exact and ROUGE-L of the answers to questions, in percent, and the share that fires.

    pairs: each a question and its reference answer.
    """
    said: list[str] = []
    for part in parts(pairs):
        limits = [len(system.tokenizer(answer).input_ids) + ROOM for _, answer in part]
        said += [answer.text for answer in system.answers([query for query, _ in part], limits)]
    fires = [route.familiar for part in parts(pairs) for route in system.routes([q for q, _ in part]) or ()]
    right = [text.strip() == answer.strip() for text, (_, answer) in zip(said, pairs, strict=True)]
    overlap = [long_answer(text, answer)["rouge_l"] for text, (_, answer) in zip(said, pairs, strict=True)]
    return {
        "asked": len(pairs),
        "exact": round(100 * fmean(right), 2),
        "rouge_l": round(100 * fmean(overlap), 2),
        "fires": round(100 * fmean(fires), 2) if fires else None,
    }


def parts(pairs: Sequence[tuple[str, str]]) -> Iterable[Sequence[tuple[str, str]]]:
    """The questions, some at a time."""
    return (pairs[first : first + AT_ONCE] for first in range(0, len(pairs), AT_ONCE))


def tokens(model: MegModel, edits: EditSet) -> float:
    """The mean length of an answer, in tokens."""
    return round(fmean(len(model.tokenizer(edit.target).input_ids) for edit in edits), 1)


if __name__ == "__main__":
    main()
