"""One batch of cases: a system is asked, and its answers or probabilities are judged by the protocol's measures.

Only here do protocols and systems meet; the rules themselves are in metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megedit.evaluate import metrics as rules
from megedit.evaluate.protocols import Case, Measure
from megedit.evaluate.result import Judgement
from megedit.evaluate.systems import Answer, System

Column = list[float | None]


@dataclass(frozen=True)
class JudgedBatch:
    """A batch of cases after one system was asked.

    answers: None where no measure needs them. wanted: for each case the right answer, which is its first accepted one
    or the unedited system's; None where that is not known. greedy: whether the answers are the system's first choices.
    """

    system: System
    cases: Sequence[Case]
    answers: Sequence[Answer] | None
    wanted: Sequence[str | Answer | None]
    greedy: bool

    @property
    def queries(self) -> list[str]:
        return [case.query for case in self.cases]

    def judgements(self, measures: Sequence[Measure]) -> list[Judgement]:
        """The judgement on each case, with the value of each measure that can be taken."""
        columns = {measure: MEASURES[measure](self) for measure in measures}
        return [
            Judgement(
                self.answers[i].text if self.answers else None,
                {name: value for name, column in columns.items() if (value := column[i]) is not None},
                self.answers[i].cut if self.answers else False,
            )
            for i in range(len(self.cases))
        ]


def needs_answers(measures: Sequence[Measure], case: Case) -> bool:
    """True if cases like this one are answered freely: for a measure, or since the unedited answer is the right one."""
    return not case.answers or bool(set(measures) - {"tf", "success"})


def wanted_answers(cases: Sequence[Case], unedited: Sequence[Answer] | None) -> list[str | Answer | None]:
    """The right answer to each case: its first accepted one, or else the unedited system's, if that is known."""
    return [case.answers[0] if case.answers else unedited[i] if unedited else None for i, case in enumerate(cases)]


# ---------------------------------------------------------------------------------------------------
# Measures: each gives one number a case, or none


def _by_text(rule: Callable[[str, Sequence[str]], float]) -> Callable[[JudgedBatch], Column]:
    """A measure of the answer's text against the accepted answers."""

    def measure(batch: JudgedBatch) -> Column:
        assert batch.answers is not None
        return [float(rule(said.text, case.answers)) for said, case in zip(batch.answers, batch.cases, strict=True)]

    return measure


def _whole_answer(batch: JudgedBatch) -> Column:
    """AG: the whole answer is an accepted one; without one, it is the unedited system's, token by token."""
    assert batch.answers is not None
    column: Column = []
    for said, case, wanted in zip(batch.answers, batch.cases, batch.wanted, strict=True):
        if case.answers:
            column.append(float(any(rules.answers_target(said.text, answer) for answer in case.answers)))
        elif isinstance(wanted, Answer):
            both = said.tokens is not None and wanted.tokens is not None
            column.append(float(said.tokens == wanted.tokens if both else said.text == wanted.text))
        else:
            column.append(None)
    return column


def _forced_agreement(batch: JudgedBatch) -> Column:
    """TF: share of the wanted tokens that are the first choice."""
    rows = [i for i, wanted in enumerate(batch.wanted) if wanted is not None]
    wanted = [answer for answer in batch.wanted if answer is not None]
    said = [batch.answers[i] for i in rows] if batch.answers and batch.greedy else None
    shares = batch.system.agreement([batch.queries[i] for i in rows], wanted, said) if rows else None
    column: Column = [None] * len(batch.cases)
    for i, share in zip(rows, shares or (), strict=False):
        column[i] = share
    return column


def _more_probable(batch: JudgedBatch) -> Column:
    """Success: the wanted answer is more probable than its rival (ROME, arXiv 2202.05262)."""
    wanted, rival = (
        batch.system.log_probs(batch.queries, answers)
        for answers in ([case.answers[0] for case in batch.cases], [case.rival or "" for case in batch.cases])
    )
    if wanted is None or rival is None:
        return [None] * len(batch.cases)
    return [
        float(rules.success(rules.mean_log_prob(a), rules.mean_log_prob(b))) for a, b in zip(wanted, rival, strict=True)
    ]


MEASURES: dict[Measure, Callable[[JudgedBatch], Column]] = {
    "ag": _whole_answer,
    "tf": _forced_agreement,
    "exact": _by_text(rules.exact_match),
    "contains": _by_text(rules.contains_target),
    "begins": _by_text(lambda text, answers: any(rules.begins_with_target(text, answer) for answer in answers)),
    "success": _more_probable,
    "entropy": _by_text(lambda text, answers: rules.ngram_entropy(text)),
    "rouge_l": _by_text(lambda text, answers: max(rules.long_answer(text, answer)["rouge_l"] for answer in answers)),
    "bleu": _by_text(lambda text, answers: max(rules.long_answer(text, answer)["bleu"] for answer in answers)),
}
