"""The protocol `paper`: Reliability, Generality and Locality under AG and TF, and the Score.

Source: MeG (arXiv 2512.14395), section 4.1. Every query is asked through the adapter's template. The edited and the
unedited model answer in batches of the same shape, since in bfloat16 the answers of any model depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from megedit.edits import Edit
from megedit.errors import MegError
from megedit.evaluate.metrics import Metrics, answer_text, answers_target, begins_with_target, token_agreement
from megedit.fit import encode_answer
from megedit.model import MegModel

Kind = Literal["reliability", "generality", "locality"]
Match = Callable[[str, str], bool]
MATCHES: dict[str, Match] = {"whole": answers_target, "begins": begins_with_target}


@dataclass(frozen=True)
class EvaluationSettings:
    """The protocol's parameters, saved with each result."""

    protocol: str = "paper"
    version: int = 1
    max_new_tokens: int = 20
    batch_size: int = 128
    match: str = "whole"

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"match must be one of {sorted(MATCHES)}, not {self.match!r}")


@dataclass(frozen=True)
class Case:
    """One question of the evaluation. target: what an edit wants; None for locality."""

    edit_id: str
    kind: Kind
    query: str
    target: str | None


@dataclass(frozen=True)
class Verdict:
    """What a model said to one case, and what it is worth under AG and TF (0 to 1)."""

    case: Case
    answer: str
    familiar: bool
    ag: float
    tf: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the edited and the unedited model, and every verdict they come from."""

    settings: EvaluationSettings
    edited: Metrics
    unedited: Metrics
    counts: dict[str, int]
    verdicts: tuple[Verdict, ...]
    unedited_verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for name, metrics in (("edited", self.edited), ("unedited", self.unedited)):
            values[name]["score"] = metrics.score
        return values


def cases_of(edits: Sequence[Edit]) -> list[Case]:
    """One case a metric for each edit: its query, its first rephrase, its first neighbourhood prompt."""
    cases = []
    for edit in edits:
        cases.append(Case(edit.id, "reliability", edit.prompt, edit.target))
        cases += [Case(edit.id, "generality", query, edit.target) for query in edit.rephrases[:1]]
        cases += [Case(edit.id, "locality", query, None) for query in edit.neighbours[:1]]
    return cases


def evaluate(
    model: MegModel,
    edits: Sequence[Edit],
    settings: EvaluationSettings = EvaluationSettings(),
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Ask both the edited and the unedited model everything; `progress` is called with the cases just done.

    Raises MegError when there is nothing to evaluate.
    """
    return evaluate_cases(model, cases_of(edits), settings, progress)


def evaluate_cases(
    model: MegModel,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """The same for chosen cases."""
    if not cases:
        raise MegError("There are no edits to evaluate.")
    edited: list[Verdict] = []
    unedited: list[Verdict] = []
    for batch in _batches(cases, settings.batch_size):
        for verdict, base_verdict in _ask(model, batch, settings):
            edited.append(verdict)
            unedited.append(base_verdict)
        progress(len(batch))
    kinds = ("reliability", "generality", "locality")
    counts = {kind: sum(case.kind == kind for case in cases) for kind in kinds}
    return Evaluation(settings, summarise(edited), summarise(unedited), counts, tuple(edited), tuple(unedited))


def summarise(verdicts: Sequence[Verdict]) -> Metrics:
    """The six metrics of a list of verdicts."""

    def percent(kind: Kind, measure: Literal["ag", "tf"]) -> float | None:
        values = [getattr(verdict, measure) for verdict in verdicts if verdict.case.kind == kind]
        return 100 * fmean(values) if values else None

    return Metrics(
        *(percent(kind, measure) for kind in ("reliability", "generality", "locality") for measure in ("ag", "tf"))
    )


def _batches(cases: Sequence[Case], size: int) -> Iterator[list[Case]]:
    """Batches of one kind each (their answers are of like length), shortest prompts first."""
    for kind in ("reliability", "generality", "locality"):
        chosen = [case for case in cases if case.kind == kind]
        chosen.sort(key=lambda case: len(case.query))
        yield from (chosen[i : i + size] for i in range(0, len(chosen), size))


def _ask(model: MegModel, batch: list[Case], settings: EvaluationSettings) -> list[tuple[Verdict, Verdict]]:
    """Verdicts of the edited and of the unedited model."""
    queries = [case.query for case in batch]
    with model.disable_edits():
        base_tokens = model.answer_tokens(queries, settings.max_new_tokens)
    edited_tokens = model.answer_tokens(queries, settings.max_new_tokens)
    familiar = [route.familiar for route in model.route(queries)]

    # What is forced on both: the target, or for locality the unedited model's own answer.
    wanted = [
        tokens if case.target is None else _target_tokens(model, case.query, case.target)
        for case, tokens in zip(batch, base_tokens, strict=True)
    ]
    edited_tf = _teacher_forced(model, queries, wanted, edited_tokens, nullcontext())
    base_tf = _teacher_forced(model, queries, wanted, base_tokens, model.disable_edits())

    verdicts = []
    for i, case in enumerate(batch):
        pair = []
        for tokens, tf, routed in ((edited_tokens, edited_tf, familiar[i]), (base_tokens, base_tf, False)):
            text = str(model.tokenizer.decode(tokens[i], skip_special_tokens=True))
            if case.target is None:
                ag = float(tokens[i] == base_tokens[i])
            else:
                ag = float(MATCHES[settings.match](text, case.target))
            pair.append(Verdict(case, text, routed, ag, tf[i]))
        verdicts.append((pair[0], pair[1]))
    return verdicts


def _target_tokens(model: MegModel, query: str, target: str) -> list[int]:
    prefix = model.adapter.config.template.answer_prefix
    return encode_answer(model.tokenizer, model.format(query), prefix + target)[1]


def _teacher_forced(
    model: MegModel,
    queries: list[str],
    wanted: list[list[int]],
    generated: list[list[int]],
    edits: AbstractContextManager[None],
) -> list[float]:
    """Share of the wanted tokens that are the model's first choice after the ones before them.

    A row whose greedy answer begins with the wanted tokens is not run again: greedy decoding has just chosen each of
    them after the ones before it.
    """
    shares = [1.0] * len(queries)
    rows = [i for i, (want, got) in enumerate(zip(wanted, generated, strict=True)) if want and got[: len(want)] != want]
    if not rows:
        return shares
    prompts = model.prompts([queries[i] for i in rows])
    width, longest = prompts["input_ids"].shape[1], max(len(wanted[i]) for i in rows)
    ids = torch.full((len(rows), longest), model.tokenizer.pad_token_id)
    for row, i in enumerate(rows):
        ids[row, : len(wanted[i])] = torch.tensor(wanted[i])
    ids = ids.to(model.base.device)
    prompts["input_ids"] = torch.cat([prompts["input_ids"], ids], 1)
    prompts["attention_mask"] = torch.cat([prompts["attention_mask"], torch.ones_like(ids)], 1)
    start = torch.full((len(rows),), width, device=ids.device)
    with edits:
        logits = model.logits(
            **prompts, answer_start=start, queries=[queries[i] for i in rows], logits_to_keep=longest + 1
        )
    chosen: Tensor = logits[:, :-1].argmax(-1).cpu()  # (rows, longest): the choice for each answer position
    for row, i in enumerate(rows):
        shares[i] = token_agreement(chosen[row, : len(wanted[i])].tolist(), wanted[i])
    return shares


def examples(evaluation: Evaluation, count: int) -> list[tuple[Case, str, str]]:
    """A few edits with all three cases: (case, unedited answer, edited answer) of each."""
    by_edit: dict[str, list[tuple[Case, str, str]]] = {}
    for base, edited in zip(evaluation.unedited_verdicts, evaluation.verdicts, strict=True):
        row = (edited.case, answer_text(base.answer), answer_text(edited.answer))
        by_edit.setdefault(edited.case.edit_id, []).append(row)
    complete = [rows for rows in by_edit.values() if len(rows) == 3][:count] or list(by_edit.values())[:count]
    return [row for rows in complete for row in rows]
