"""The protocols: what is asked, how long an answer may be, what counts as right. Each has a name and a version.

A protocol is data: a rule for its cases, and metrics, each of which measures one kind of case in one way. Raise the
version when a rule changes; results of different versions are not comparable. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megedit.edits import Edit, EditSet, normalise_query
from megedit.errors import MegError, needs
from megedit.evaluate.perturb import PERTURBATIONS, perturb

Measure = Literal["ag", "tf", "exact", "contains", "begins", "success", "entropy", "rouge_l", "bleu"]
TemplateKind = Literal["adapter", "chat", "raw"]
ROBUSTNESS = "robustness:"
CONTRAST = "contrast"  # asks for facts in a schema of its own, by a call of its own (docs/contrast.md)


@dataclass(frozen=True)
class Case:
    """One question of an evaluation.

    edit: id of the edit it belongs to. group: what is averaged over and resampled, the edit or, for questions over
    several edits, the instance. answers: all that are accepted; none where the unedited model's own answer is wanted.
    rival: the answer that must be less probable, where two are compared.
    """

    edit: str
    group: str
    kind: str
    query: str
    answers: tuple[str, ...] = ()
    relation: str | None = None
    rival: str | None = None


@dataclass(frozen=True)
class Metric:
    """The mean over groups of one measure on one kind of case; within a group, the mean, all or any of its cases."""

    label: str
    kind: str
    measure: Measure
    name: str = ""
    reduce: Literal["mean", "all", "any"] = "mean"
    unit: str = "%"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or f"{self.kind}_{self.measure}")


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation: amount and form of the questions. None stands for the protocol's own value."""

    rephrases: int | None = field(default=None, metadata={"help": "rephrases an edit; all that there are by default"})
    neighbours: int | None = field(default=None, metadata={"help": "neighbourhood prompts an edit"})
    robustness: tuple[str, ...] = field(default=(), metadata={"help": "perturbations of the edits' own queries"})
    max_new_tokens: int | None = field(default=None, metadata={"help": "longest answer, in tokens, of any target"})
    template: TemplateKind | None = field(default=None, metadata={"help": "adapter, chat or raw"})
    batch_size: int = field(default=128, metadata={"help": "questions asked at a time"})
    seed: int = field(default=0, metadata={"help": "seed of perturbations, sampling and bootstrap"})

    def __post_init__(self) -> None:
        for name in ("rephrases", "neighbours", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < (name == "max_new_tokens"):
                raise MegError(f"{name} is {value}; it must not be below {int(name == 'max_new_tokens')}.")
        if self.batch_size < 1:
            raise MegError(f"batch_size is {self.batch_size}; it must be at least 1.")
        for name in self.robustness:
            if name not in PERTURBATIONS:
                raise MegError(f"There is no perturbation {name!r}; choose from {', '.join(PERTURBATIONS)}.")


@dataclass(frozen=True)
class Protocol:
    """A named way to evaluate.

    cases: from the edits and the settings, the questions; raises MegError when the data lacks what the protocol needs.
    score: the metrics whose harmonic mean is the Score. max_new_tokens: longest answer, in tokens; where the target is
    longer, or nearly so, the answer may be so too. top_k: above 1, answers are sampled. neighbours: how many
    neighbourhood prompts of an edit are asked; None: all.
    """

    name: str
    version: int
    help: str
    cases: Callable[[EditSet, EvaluationSettings], Iterator[Case]]
    metrics: tuple[Metric, ...]
    score: tuple[str, ...]
    max_new_tokens: int
    template: TemplateKind = "adapter"
    top_k: int = 1
    neighbours: int | None = 1

    def with_settings(self, settings: EvaluationSettings) -> tuple[tuple[Metric, ...], EvaluationSettings]:
        """The metrics, those of the robustness row among them, and the settings with the protocol's own filled in."""
        first = self.metrics[0]
        rows = tuple(
            Metric(f"{name}, {LABELS[first.measure]}", f"{ROBUSTNESS}{name}", first.measure)
            for name in settings.robustness
        )
        filled = asdict(settings) | {
            name: getattr(self, name) for name in ("neighbours", "template") if getattr(settings, name) is None
        }
        return self.metrics + rows, EvaluationSettings(**{**filled, "robustness": tuple(settings.robustness)})


LABELS: dict[Measure, str] = {
    "ag": "AG",
    "tf": "TF",
    "exact": "exact match",
    "contains": "contains target",
    "begins": "begins with target",
    "success": "success",
    "entropy": "entropy",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
}


def _metrics(kinds: Sequence[str], measures: Sequence[Measure]) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{kind.replace('_', ' ').capitalize()}, {LABELS[measure]}", kind, measure)
        for kind in kinds
        for measure in measures
    )


# ---------------------------------------------------------------------------------------------------
# Cases


def _case(edit: Edit, kind: str, query: str, answers: Iterable[str] = (), rival: str | None = None) -> Case:
    return Case(edit.id, edit.id, kind, query, tuple(answers), edit.relation, rival)


def _wordings(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    """An edit's query, its rephrases, and perturbed forms of the query."""
    for edit in edits:
        yield _case(edit, "reliability", edit.prompt, [edit.target])
        for query in edit.rephrases[: settings.rephrases]:
            yield _case(edit, "generality", query, [edit.target])
        for name in settings.robustness:
            yield _case(edit, f"{ROBUSTNESS}{name}", perturb(name, edit.prompt, settings.seed), [edit.target])


def _neighbours(edits: EditSet, settings: EvaluationSettings) -> Iterator[tuple[Edit, str]]:
    """The neighbourhood prompts that are asked; none that is itself a query of an edit."""
    asked = {normalise_query(text) for edit in edits for text in (edit.prompt, *edit.rephrases)}
    for edit in edits:
        free = [text for text in edit.neighbours if normalise_query(text) not in asked]
        for text in free[: settings.neighbours]:
            yield edit, text


def _general_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    yield from _wordings(edits, settings)
    for edit, query in _neighbours(edits, settings):
        yield _case(edit, "locality", query)


def _wild_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    yield from _general_cases(edits, settings)
    yield from _questions(edits, "portability")


def _questions(edits: EditSet, kind: str) -> Iterator[Case]:
    by_id = {edit.id: edit for edit in edits}
    for question in edits.questions:
        if question.kind == kind:
            edit = by_id.get(question.group)  # none where the group is an instance of several edits
            relation = edit.relation if edit else None
            yield Case(question.group, question.group, kind, question.query, question.answers, relation)


def _comparison_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    _require(edits, "counterfact", "target_true", (edit for edit in edits if not edit.target_true))
    _require(edits, "counterfact", "target_true other than target", (e for e in edits if e.target_true == e.target))
    for edit in edits:
        yield _case(edit, "efficacy", edit.prompt, [edit.target], edit.target_true)
        for query in edit.rephrases[: settings.rephrases]:
            yield _case(edit, "paraphrase", query, [edit.target], edit.target_true)
    for edit, query in _neighbours(edits, settings):
        yield _case(edit, "neighbourhood", query, [str(edit.target_true)], edit.target)
    yield from _questions(edits, "generation")


def _known_answer_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    yield from _wordings(edits, settings)
    known = list(_questions(edits, "locality"))
    if not known:
        raise MegError(
            f"The protocol zsre-tf needs neighbours with known answers (`loc` and `loc_ans`), and {edits.source} has "
            "none; use the protocol paper, or a file in the form of ZsRE."
        )
    yield from known


def _multi_hop_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    if not any(question.kind == "multi_hop" for question in edits.questions):
        raise MegError(
            f"The protocol multi-hop needs questions over several edits (`questions` and `new_answer` of MQuAKE), and "
            f"{edits.source} has none; give a file in the form of MQuAKE."
        )
    by_id = {edit.id: edit for edit in edits}
    for instance, members in edits.instances.items():
        for edit in (by_id[member] for member in members):
            yield Case(edit.id, instance, "edit_wise", edit.prompt, (edit.target,), edit.relation)
    for kind in ("single_hop", "multi_hop"):
        yield from _questions(edits, kind)


def _long_cases(edits: EditSet, settings: EvaluationSettings) -> Iterator[Case]:
    for package in ("rouge_score", "sacrebleu"):
        needs(package, "long", "the protocol long")
    yield from _wordings(edits, settings)
    yield from _questions(edits, "sub_question")


def _require(edits: EditSet, protocol: str, what: str, lacking: Iterable[Edit]) -> None:
    missing = list(lacking)
    if missing:
        raise MegError(
            f"The protocol {protocol} needs `{what}`, and {len(missing)} of {len(edits)} edits of {edits.source} have "
            f"none (first: {missing[0].id}); add it, or use the protocol paper."
        )


# ---------------------------------------------------------------------------------------------------
# The protocols

_THREE = ("reliability", "generality", "locality")
_SIX = _metrics(_THREE, ("ag", "tf"))
_WILD = (
    *_metrics(("reliability", "generality"), ("exact", "contains")),
    Metric("Locality, same answer", "locality", "ag"),
    *_metrics(("portability",), ("exact", "contains")),
)
_COMPARED = (
    Metric("Efficacy success (ES)", "efficacy", "success"),
    Metric("Paraphrase success (PS)", "paraphrase", "success"),
    Metric("Neighbourhood success (NS)", "neighbourhood", "success"),
    Metric("Generation entropy (GE)", "generation", "entropy", unit="bits"),
)
_HOPS: tuple[Metric, ...] = (
    Metric("Edit-wise, exact match", "edit_wise", "exact"),
    Metric("Instance-wise, exact match", "single_hop", "exact", reduce="all"),
    Metric("Multi-hop, exact match", "multi_hop", "exact", reduce="any"),
    Metric("Edit-wise, contains target", "edit_wise", "contains"),
    Metric("Instance-wise, contains target", "single_hop", "contains", reduce="all"),
    Metric("Multi-hop, contains target", "multi_hop", "contains", reduce="any"),
)
_LONG = (
    *_metrics(("reliability", "generality"), ("rouge_l", "bleu", "tf")),
    *_metrics(("sub_question",), ("rouge_l",)),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="paper",
            version=3,
            help="Reliability, Generality, Locality: strict free answers (AG), teacher forcing (TF), the Score",
            cases=_general_cases,
            metrics=_SIX,
            score=tuple(metric.name for metric in _SIX),
            max_new_tokens=20,
        ),
        Protocol(
            name="wild",
            version=2,
            help="the question alone in the model's chat template, up to 50 tokens; exact match and contains apart",
            cases=_wild_cases,
            metrics=_WILD,
            score=("reliability_exact", "generality_exact", "locality_ag"),
            max_new_tokens=50,
            template="chat",
        ),
        Protocol(
            name="cloze",
            version=2,
            help="prompts without template; right when the answer begins with the target at a word boundary",
            cases=_general_cases,
            metrics=(
                *_metrics(("reliability", "generality"), ("begins", "tf")),
                *_metrics(("locality",), ("ag", "tf")),
            ),
            score=(
                "reliability_begins", "reliability_tf", "generality_begins", "generality_tf", "locality_ag",
                "locality_tf",
            ),
            max_new_tokens=20,
            template="raw",
        ),
        Protocol(
            name="counterfact",
            version=1,
            help="ES, PS, NS: is the wanted answer more probable than its rival; generation entropy (ROME, MEMIT)",
            cases=_comparison_cases,
            metrics=_COMPARED,
            score=tuple(metric.name for metric in _COMPARED[:3]),
            max_new_tokens=100,
            template="raw",
            top_k=5,
            neighbours=None,
        ),
        Protocol(
            name="zsre-tf",
            version=1,
            help="token accuracy with the right tokens before it, also of neighbours' known answers (MEND, ROME)",
            cases=_known_answer_cases,
            metrics=_metrics(_THREE, ("tf",)),
            score=tuple(metric.name for metric in _metrics(_THREE, ("tf",))),
            max_new_tokens=20,
        ),
        Protocol(
            name="multi-hop",
            version=2,
            help="edit-wise, instance-wise and multi-hop accuracy on questions over several edits (MQuAKE)",
            cases=_multi_hop_cases,
            metrics=_HOPS,
            score=tuple(metric.name for metric in _HOPS[:3]),
            max_new_tokens=50,
        ),
        Protocol(
            name="long",
            version=2,
            help="answers of many sentences: ROUGE-L, BLEU, token accuracy (UnKE)",
            cases=_long_cases,
            metrics=_LONG,
            score=("reliability_rouge_l", "generality_rouge_l"),
            max_new_tokens=200,
        ),
    )
}  # fmt: skip


PROTOCOL_NAMES = (*PROTOCOLS, CONTRAST)


def find_protocol(name: str) -> Protocol:
    """The protocol of that name, of those that `evaluate` takes. Raises MegError when there is none."""
    if name == CONTRAST:
        raise MegError("The protocol 'contrast' takes facts with contrast texts; call `contrast`, not `evaluate`.")
    if name not in PROTOCOLS:
        raise MegError(f"There is no protocol {name!r}; choose from {', '.join(PROTOCOL_NAMES)}.")
    return PROTOCOLS[name]


def describe(protocol: Protocol, settings: EvaluationSettings) -> dict[str, Any]:
    """The part of a result that says how it was made; the batch size is not part of the rules."""
    values = asdict(settings) | {
        "robustness": list(settings.robustness),
        "top_k": protocol.top_k,
        "max_new_tokens": settings.max_new_tokens or protocol.max_new_tokens,
        "room_for_target": settings.max_new_tokens is None,
    }
    return {"name": protocol.name, "version": protocol.version, "settings": values}
