"""Many edits in one batch: quality and cost of the whole chain.

    python -m benchmarks.edits --data DIR --set counterfact --edits 10000 --asked 1000

The sets, made from the files of DIR (counterfact.jsonl, zsre_style.jsonl, zsre.jsonl, nq_locality.jsonl):

    counterfact      rephrases with and without a noise sentence; neighbours: same relation, other subject
    zsre_style       neighbours: Natural Questions, and questions of the same form about subjects that are not edited
    zsre             the records of zsre.jsonl with their human rephrases, among so many of zsre_style that are edited
                     too but not asked; same neighbours. ZsRE names no relation: records about a subject with the same
                     true answer are taken to ask for the same
    many             real facts of all files, then facts made of their subjects and relations (make_many.py), which are
                     also scored apart
    zsre-all         the same with all records of zsre.jsonl, those too that contradict an earlier one in other words
    counterfact-raw  counterfact without template, by the protocol `cloze`; what its rule says of free answers stands
                     under the names of AG

Each is also asked other questions about the edited subjects: what another relation asks, with the subject put in.
The first records are edited (second targets of a (subject, relation) pair dropped). Nothing is tuned on them; what the
shipped networks were trained on holds none of their subjects, and questions that are among its texts are left out. With
--asked, a random sample of that many edits is asked. Writes results/edit_EDITS_SET.json, behind the name the kind of
device and of base where they are not the default, and `float32` where processor or GPU has no bfloat16; with --verdicts
FILE also every question and answer.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BASE, COMMIT, base_name, on_device, suffix, write_result
from benchmarks.make_many import many
from benchmarks.make_shipped_data import records
from megedit import FitSettings, MegModel, fit, read_edits
from megedit.adapter.folder import is_adapter
from megedit.edits import Edit, EditSet, normalise_query
from megedit.edits.subjects import SubjectIndex
from megedit.evaluate import Evaluation, EvaluationSettings, Measured, Verdict, cases_of, evaluate, find_protocol
from megedit.evaluate.result import summarise
from megedit.pseudo.knowledge import PseudoFact, load_pseudo_knowledge, seen_in_training
from megedit.pseudo.wordings import OtherQuestions
from megedit.runtime.device import default_dtype
from megedit.runtime.progress import Stages, peak_memory

RAW = "counterfact-raw"
SETS = ("counterfact", "zsre_style", "zsre", "zsre-all", "many", RAW)


@dataclass(frozen=True)
class BenchmarkSet:
    """The edits, each with the rephrase and neighbours of the headline; those of them that may be asked; rows of
    further questions, by edit id."""

    edits: EditSet
    asked: Sequence[Edit]
    more_rephrases: dict[str, dict[str, str]]
    more_neighbours: dict[str, dict[str, str]]

    @property
    def further(self) -> dict[str, set[str]]:
        """The texts of each row of further questions that has any."""
        rows = self.more_rephrases | self.more_neighbours
        return {row: set(texts.values()) for row, texts in rows.items() if texts}


def load_set(data: Path, name: str, count: int) -> BenchmarkSet:
    """One of the sets; fewer edits where the files have fewer."""
    if name == "many":
        edits = EditSet.from_edits(many(data, count, seed=0))
        return BenchmarkSet(edits, edits.edits, {}, {})
    if name in ("counterfact", RAW):
        edits = read_edits(data / "counterfact.jsonl", limit=count, on_conflict="first")
        by_id = {str(record["case_id"]): record for record in records(data / "counterfact.jsonl")}
        chosen = [
            replace(
                edit,
                rephrases=unseen(by_id[edit.id]["x_paraphrase_clean"])[:1],
                neighbours=unseen(edit.neighbours)[:1],
            )
            for edit in edits
        ]
        noisy = {edit.id: by_id[edit.id]["paraphrase_prompts"][0] for edit in edits}
        return BenchmarkSet(
            replace(edits, edits=tuple(chosen)),
            chosen,
            {"noisy_rephrases": noisy},
            {"other_questions": other_questions(chosen)},
        )
    real: list[Edit] = []
    if name in ("zsre", "zsre-all"):
        real = list(read_edits(data / "zsre.jsonl", on_conflict="first"))
    if name == "zsre":
        real = first_targets(real)
    styled = list(read_edits(data / "zsre_style.jsonl", on_conflict="first"))
    known = {(edit.subject, edit.prompt) for edit in real}
    subjects = SubjectIndex(edit.subject for edit in real if edit.subject)
    styled = [e for e in styled if (e.subject, e.prompt) not in known and (e.subject or "") not in subjects]
    chosen = [replace(edit, id=f"real-{edit.id}") for edit in real] + styled[: count - len(real)]
    edited = SubjectIndex(edit.subject for edit in chosen if edit.subject)
    pseudo = set(load_pseudo_knowledge().texts())
    others = [edit.prompt for edit in styled[count - len(real) :]]
    others = [text for text in others if text not in pseudo and not edited.named_in(text)]
    questions = [record["question"].strip() for record in records(data / "nq_locality.jsonl")]
    questions = [text for text in questions if text not in pseudo and not edited.named_in(text)]
    edits = EditSet.from_edits(
        (
            replace(edit, rephrases=edit.rephrases[:1], neighbours=tuple(questions[i : i + 1]))
            for i, edit in enumerate(chosen)
        ),
        on_conflict="first",
    )
    same_form = {edit.id: text for edit, text in zip(edits, others, strict=False)}
    return BenchmarkSet(
        replace(edits, source=f"{name}, {len(real)} of zsre.jsonl"),
        [edit for edit in edits if not real or edit.id.startswith("real-")],
        {},
        {"same_form_neighbours": same_form, "other_questions": other_questions(list(edits))},
    )


def unseen(texts: Sequence[str]) -> tuple[str, ...]:
    """Those of the texts that the shipped networks were not trained on, in their order."""
    return tuple(text for text in texts if not seen_in_training(text))


def first_targets(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without second targets of a subject and true answer, which stands for the relation they do not name."""
    facts = (replace(edit, relation=edit.target_true) for edit in edits)
    kept = {edit.id for edit in EditSet.from_edits(facts, on_conflict="first")}
    return [edit for edit in edits if edit.id in kept]


def other_questions(edits: Sequence[Edit]) -> dict[str, str]:
    """For each edit the query of another relation, asked about its subject; none where that is edited too."""
    facts = {edit.id: PseudoFact(edit.prompt, edit.rephrases, (), edit.subject, edit.relation) for edit in edits}
    questions, rng = OtherQuestions(facts.values()), random.Random(0)
    asked = {normalise_query(edit.prompt) for edit in edits}
    found = {name: questions.about(fact, rng) for name, fact in facts.items()}
    return {name: text for name, text in found.items() if text and normalise_query(text) not in asked}


def main() -> None:
    options = arguments()
    name = result_name(options)
    out: Path = options.out or Path("adapters") / name
    chosen = load_set(options.data, options.set, options.edits)
    template = "raw" if options.set == RAW else "auto"
    settings = FitSettings(seed=options.seed, template=template)
    fitted = fit_or_load(options.base, chosen.edits, out, settings, options.device)
    model = MegModel.from_pretrained(out, base=options.base, device=options.device)
    adapter = model.adapter

    asked = with_more(chosen, options.asked, options.seed)
    protocol = "cloze" if options.set == RAW else "paper"
    evaluation = EvaluationSettings(neighbours=1 + len(chosen.more_neighbours))
    stages = Stages()
    with stages.stage("Evaluating", len(cases_of(asked, find_protocol(protocol), evaluation))) as advance:
        result = evaluate(model, asked, protocol, evaluation, progress=advance)
    results = {"edits": len(chosen.edits), "asked": len(asked), **metrics_of(result, chosen, protocol)}
    if options.set == "many":
        results |= {kind: parts_of(result, protocol, kind == "made") for kind in ("real", "made")}
    results |= {
        "counts": result.counts,
        "failed": [record.edit.id for record in adapter.records if record.status == "failed"],
        "generated_uncertain": [record.edit.id for record in adapter.records if not record.generated],
        **fitted,
        "mean_collection_steps": sum(record.steps for record in adapter.records) / len(adapter.records),
        "adapter_mb": round(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6, 1),
        "evaluation_seconds": stages.costs["Evaluating"]["seconds"],
        "calibration": {k: v for k, v in adapter.config.calibration.to_json().items() if k != "curve"},
        "calibration_curve": adapter.config.calibration.curve,
        "generator_training": adapter.config.provenance["generator_training"],
    }
    used = {
        "fit": asdict(settings),
        "evaluation": result.protocol,
        "base": base_name(options.base),
        "device": options.device,
    }
    path = write_result(name, used, results)
    if options.verdicts:
        options.verdicts.write_text(json.dumps(result.to_json(), ensure_ascii=False, indent=1), "utf-8")
    rows = (row for row in chosen.further if row in results)
    shown = ("edited", *rows, "fit_seconds", "collection_seconds_per_edit", "adapter_mb")
    print(json.dumps({key: results[key] for key in shown}, indent=1))
    print(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="counterfact")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--asked", type=int, default=None, help="edits drawn at random to be asked [default: all]")
    parser.add_argument("--out", type=Path, default=None, help="adapter folder [default: adapters/edit_EDITS_SET]")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verdicts", type=Path, default=None)
    return parser.parse_args()


def result_name(options: argparse.Namespace) -> str:
    """The name of the result file: that of the set, and what is not the default."""
    name = f"edit_{options.edits}_{options.set.replace('-', '_')}"
    name += on_device(options.device)
    name += "" if default_dtype(options.device) == torch.bfloat16 else "_float32"
    return name + suffix(options.base)


def metrics_of(result: Evaluation, chosen: BenchmarkSet, protocol: str) -> dict[str, Any]:
    """The metrics of the headline, and those of each row of further questions that was asked."""
    more = set().union(*chosen.further.values())
    measured = measure([verdict for verdict in result.verdicts if verdict.case.query not in more], protocol)
    rows = {
        row: [verdict for verdict in result.verdicts if verdict.case.query in texts]
        for row, texts in chosen.further.items()
    }
    return {
        "edited": {metric.name: metric.edited and metric.edited.value for metric in measured},
        "unedited": {metric.name: metric.unedited and metric.unedited.value for metric in measured},
        "intervals": {metric.name: [metric.edited.low, metric.edited.high] for metric in measured if metric.edited},
        **{
            row: {m.name: m.edited.value for m in measure(found, protocol) if m.edited and m.name != "score"}
            for row, found in rows.items()
            if found
        },
    }


def parts_of(result: Evaluation, protocol: str, made: bool) -> dict[str, float]:
    """The metrics of the made facts alone, or of the real ones."""
    own = [verdict for verdict in result.verdicts if verdict.case.edit.startswith("made-") == made]
    return {metric.name: metric.edited.value for metric in measure(own, protocol) if metric.edited}


def fit_or_load(base: str, edits: EditSet, out: Path, settings: FitSettings, device: str) -> dict[str, Any]:
    """Fit the adapter, unless an earlier run has; what it cost, and on which commit. The cost of a fit that went on is
    marked as such."""
    costs = out.with_name(f"{out.name}.costs.json")
    if not (is_adapter(out) and costs.exists()):
        went_on = out.with_name(f".{out.name}.fit").exists()
        stages, started = Stages(), time.perf_counter()
        fit(base, edits, out, settings, device=device, overwrite=True, stages=stages)
        whole, staged = time.perf_counter() - started, sum(cost["seconds"] for cost in stages.costs.values())
        spent = {
            "fit_seconds": round(max(whole, staged), 1),  # of a fit that went on, only the stages are all counted
            **{f"fit_{name}": max(cost.get(name, 0) for cost in stages.costs.values()) for name in peak_memory()},
            "fit_went_on": went_on,
            "collection_seconds_per_edit": round(
                stages.costs.get("Collecting neurons", {"seconds": 0.0})["seconds"] / len(edits), 4
            ),
            "stages": stages.costs,
            "fit_commit": COMMIT,
        }
        costs.write_text(json.dumps(spent), "utf-8")
    return dict(json.loads(costs.read_text("utf-8")))


def with_more(chosen: BenchmarkSet, count: int | None, seed: int) -> EditSet:
    """The edits that are asked, all or so many drawn at random, with their further questions."""
    drawn = list(chosen.asked)
    if count is not None:
        drawn = random.Random(seed).sample(drawn, min(count, len(drawn)))

    def more(edit: Edit) -> Edit:
        rephrases = [texts[edit.id] for texts in chosen.more_rephrases.values() if edit.id in texts]
        neighbours = [texts[edit.id] for texts in chosen.more_neighbours.values() if edit.id in texts]
        return replace(edit, rephrases=(*edit.rephrases, *rephrases), neighbours=(*edit.neighbours, *neighbours))

    return replace(chosen.edits, edits=tuple(more(edit) for edit in drawn))


def measure(verdicts: Sequence[Verdict], protocol: str) -> list[Measured]:
    """The metrics of some of the verdicts; what the protocol `cloze` says of free answers under the names of AG."""
    rules = find_protocol(protocol)
    return [
        replace(metric, name=metric.name.replace("_begins", "_ag"))
        for metric in summarise(verdicts, rules.metrics, rules.score)
    ]


if __name__ == "__main__":
    main()
