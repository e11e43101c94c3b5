"""The measures: what an answer, or a model's probabilities, are worth. Each gives one number a case, or none.

Only here do protocols and subjects meet; the rules themselves are in metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megedit.evaluate import metrics as rules
from megedit.evaluate.protocols import Case, Measure
from megedit.evaluate.systems import Answer, Subject

Column = list[float | None]


@dataclass(frozen=True)
class Asked:
    """A batch of cases and one subject's answers to it.

    answers: None where nothing needs them. wanted: for each case the answer that is right: its first accepted one, or
    the unedited subject's; None where that is not known. greedy: whether the answers are the subject's first choices.
    """

    subject: Subject
    cases: Sequence[Case]
    answers: Sequence[Answer] | None
    wanted: Sequence[str | Answer | None]
    greedy: bool

    @property
    def queries(self) -> list[str]:
        return [case.query for case in self.cases]

    def values(self, measures: Sequence[Measure]) -> list[dict[str, float]]:
        """For each case, what each measure gives that can be taken."""
        columns = {measure: MEASURES[measure](self) for measure in measures}
        return [
            {name: value for name, column in columns.items() if (value := column[i]) is not None}
            for i in range(len(self.cases))
        ]


def needs_answers(measures: Sequence[Measure], case: Case) -> bool:
    """Whether cases like this one are answered freely: for a measure, or since the unedited answer is the right one."""
    return not case.answers or bool(set(measures) - {"tf", "success"})


def _by_text(rule: Callable[[str, Sequence[str]], float]) -> Callable[[Asked], Column]:
    """A measure of the answer's text against the accepted answers."""

    def measure(asked: Asked) -> Column:
        assert asked.answers is not None
        return [float(rule(said.text, case.answers)) for said, case in zip(asked.answers, asked.cases, strict=True)]

    return measure


def _whole_answer(asked: Asked) -> Column:
    """AG: the whole answer is an accepted one; without one, it is the unedited subject's, token by token."""
    assert asked.answers is not None
    column: Column = []
    for said, case, wanted in zip(asked.answers, asked.cases, asked.wanted, strict=True):
        if case.answers:
            column.append(float(any(rules.answers_target(said.text, answer) for answer in case.answers)))
        elif isinstance(wanted, Answer):
            both = said.tokens is not None and wanted.tokens is not None
            column.append(float(said.tokens == wanted.tokens if both else said.text == wanted.text))
        else:
            column.append(None)
    return column


def _forced_agreement(asked: Asked) -> Column:
    """TF: share of the wanted tokens that are the first choice."""
    rows = [i for i, wanted in enumerate(asked.wanted) if wanted is not None]
    wanted = [answer for answer in asked.wanted if answer is not None]
    said = [asked.answers[i] for i in rows] if asked.answers and asked.greedy else None
    shares = asked.subject.agreement([asked.queries[i] for i in rows], wanted, said) if rows else None
    column: Column = [None] * len(asked.cases)
    for i, share in zip(rows, shares or (), strict=False):
        column[i] = share
    return column


def _more_probable(asked: Asked) -> Column:
    """Whether the wanted answer is more probable than its rival (ROME, arXiv 2202.05262)."""
    probabilities = [
        asked.subject.log_probs(asked.queries, answers)
        for answers in ([case.answers[0] for case in asked.cases], [case.rival or "" for case in asked.cases])
    ]
    wanted, rival = probabilities
    if wanted is None or rival is None:
        return [None] * len(asked.cases)
    return [
        float(rules.success(rules.mean_log_prob(a), rules.mean_log_prob(b))) for a, b in zip(wanted, rival, strict=True)
    ]


MEASURES: dict[Measure, Callable[[Asked], Column]] = {
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
