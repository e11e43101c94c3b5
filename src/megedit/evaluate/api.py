"""`evaluate`: one call for an edited model of ours, a model edited by other software, or any function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter
from megedit.edits import Edit, EditSet, normalise_query
from megedit.edits.contrast import ContrastFact
from megedit.errors import MegError
from megedit.evaluate.firing import ContrastCase, ContrastResult, Fired, names_of, rates, run_contrast
from megedit.evaluate.firing import cases_of as contrast_cases
from megedit.evaluate.metrics import exact_match
from megedit.evaluate.protocols import Case, EvaluationSettings, TemplateKind, find_protocol
from megedit.evaluate.result import Evaluation
from megedit.evaluate.run import ENDING, run
from megedit.evaluate.systems import FunctionSystem, MegSystem, System
from megedit.lm.template import Template
from megedit.model import MegModel
from megedit.pseudo.knowledge import seen_in_training, text_key
from megedit.runtime.cache import cache_folder
from megedit.runtime.callbacks import Advance, no_progress

logger = logging.getLogger("megedit")

Function = Callable[[list[str]], list[str]]
CONTRAST_TOKENS = 20  # of an answer, at least, where the protocol `contrast` judges by answers
OWN_QUERIES = "reliability"  # the kind of the edits' own queries


def evaluate(
    edited: MegModel | System | Function,
    edits: EditSet | Sequence[Edit],
    protocol: str = "paper",
    settings: EvaluationSettings | None = None,
    *,
    unedited: System | Function | None = None,
    name: str = "",
    resume: bool = True,
    progress: Advance = no_progress,
) -> Evaluation:
    """Evaluate an edited model by a named protocol (`PROTOCOLS`).

    edited: a `MegModel`; a `ModelSystem` around any Hugging Face model; any other `System`; or a function from a
    list of queries to their answers. unedited: what it is compared with; for a `MegModel`, itself without edits.
    Without it, Locality cannot be measured. name: what the result calls it. resume: go on with an evaluation of the
    same system and questions that was interrupted. progress: called with the number of questions just done.

    Edits that a `MegModel` does not have are not asked; nor are questions that the shipped networks were trained on.
    The result counts both.

    Raises MegError for an unknown protocol, no edits, none that the model has, data without what the protocol needs, or
    questions on which the adapter's encoder was tuned or its router calibrated.
    """
    chosen, settings = find_protocol(protocol), settings or EvaluationSettings()
    edit_set = edits if isinstance(edits, EditSet) else EditSet.of(edits, "Python")
    if not isinstance(edited, MegModel):
        system, standard = _as_system(edited, name), _as_system(unedited, "unedited") if unedited else None
        journals = _journals() if resume and system.identity else None
        return run(chosen, system, standard, edit_set, settings, journals=journals, progress=progress)
    adapter, template = edited.adapter, template_of(settings.template or chosen.template, edited.tokenizer)
    edit_set = known_edits(adapter, edit_set)
    system = MegSystem(edited, name or "adapter", template)
    standard = system.unedited()
    config = adapter.config
    calibration = config.calibration.to_json()
    return run(
        chosen,
        system,
        standard,
        edit_set,
        settings,
        unfamiliar_is_unedited=True,
        system={"base": config.base, "edits": len(edited.edits)},
        fit={"stages": config.provenance.get("stages", {}), "calibration": calibration},
        journals=_journals() if resume else None,
        progress=progress,
        check=lambda cases: unseen(adapter, cases),
    )


def contrast(
    edited: MegModel | System | Function,
    facts: Sequence[ContrastFact],
    *,
    source: str = "Python",
    name: str = "",
    limit: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Advance = no_progress,
) -> ContrastResult:
    """Measure which questions fire an edit by the protocol `contrast` (docs/contrast.md).

    edited: as for `evaluate`. A `MegModel` says which edit it has used; it must hold the facts. Any other system is
    judged by its answers: a fact has fired when the whole answer is its target. source, name: what the result calls
    the facts and the system. limit: only the texts of the first so many facts. progress: called with the number of
    texts just asked, and once with that of those left out.

    Raises MegError when there are no facts, or the model does not hold one of them.
    """
    asked = facts[:limit]
    if not asked:
        raise MegError(f"{source}: there are no facts to ask for; give at least one.")
    if isinstance(edited, MegModel):
        names = _names_in(edited, asked, source)
        prompts = {edit.id: edit.prompt for edit in edited.edits}
        own = set(edited.adapter.seen.tolist())
        cases, left_out = contrast_cases(
            facts, names, lambda text: seen_in_training(text) or text_key(text) in own, limit
        )
        fired, name = partial(_by_route, edited), name or "adapter"
        router = edited.adapter.config.settings.router
        allowed = 100 * router.false_fires if router.rule == "verified" else None
    else:
        system = _as_system(edited, name)
        prompts = {str(i): fact.prompt for i, fact in enumerate(facts)}
        cases, left_out = contrast_cases(facts, names_of((text, i) for i, text in prompts.items()), limit=limit)
        fired, name, allowed = partial(_by_answer, system, facts), system.name, None
    progress(sum(left_out.values()))
    verdicts = run_contrast(cases, fired, batch_size, progress)
    recognised, false, kinds = rates(verdicts, len(asked), seed)
    return ContrastResult(
        system=name,
        source=source,
        facts=len(asked),
        judged_by="route" if isinstance(edited, MegModel) else "answer",
        recognised=recognised,
        false=false,
        kinds=kinds,
        allowed=allowed,
        left_out=left_out,
        verdicts=verdicts,
        seed=seed,
        prompts=tuple(fact.prompt for fact in asked),
        edits={i: prompts[i] for i in dict.fromkeys(v.fired.edit for v in verdicts) if i is not None},
    )


def template_of(kind: TemplateKind, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The template of a protocol; None for the adapter's own."""
    if kind == "adapter":
        return None
    return Template.for_tokenizer(tokenizer, "raw" if kind == "raw" else "auto", instruction="")


def unseen(adapter: Adapter, cases: Sequence[Case]) -> list[Case]:
    """The cases without questions that the shipped networks were trained on; the edits' own queries stay.

    Raises MegError when a question was among the texts that this adapter's encoder was tuned or its router calibrated
    on.
    """
    own = set(adapter.seen.tolist())
    if known := [case.query for case in cases if text_key(case.query) in own]:
        raise MegError(
            f"{len(known)} of the {len(cases)} questions were seen when this adapter's encoder was tuned or its router "
            f"calibrated (first: {known[0]!r}); evaluate on other questions, or fit again with pseudo-knowledge "
            "(--pseudo) that does not hold them."
        )
    left = [case for case in cases if case.kind == OWN_QUERIES or not seen_in_training(case.query)]
    if len(left) < len(cases):
        logger.warning(
            "%d of the %d questions are among the texts that the shipped networks were trained on, and are left out",
            len(cases) - len(left),
            len(cases),
        )
    return left


def known_edits(adapter: Adapter, edits: EditSet) -> EditSet:
    """The edits that the adapter has and that were not removed, told by their queries; the others are `dropped`.

    Raises MegError when none is left.
    """
    made = {normalise_query(record.edit.prompt) for record in adapter.records if record.status != "removed"}
    known = [edit.id for edit in edits if normalise_query(edit.prompt) in made]
    if len(known) == len(edits) > 0:
        return edits
    if not known:
        first = f" (first: {edits[0].prompt!r})" if len(edits) else ""
        raise MegError(
            f"None of the {len(edits)} edits of {edits.source} is in this adapter{first}; evaluate it on the facts it "
            "was made from."
        )
    logger.warning("%d of the %d edits are not in this adapter and are not asked", len(edits) - len(known), len(edits))
    return edits.only(known, "not in this adapter")


def adapter_edits(adapter: Adapter, source: str, limit: int | None = None) -> EditSet:
    """The edits of an adapter that were not removed, those that failed among them; the first `limit` of them."""
    made = [record.edit for record in adapter.records if record.status != "removed"]
    return EditSet.of(made[:limit], source)


def _as_system(given: Any, name: str) -> System:
    if hasattr(given, "answers"):
        system: System = given
        return system
    return FunctionSystem(given, name or getattr(given, "__name__", "function"))


def _journals() -> Path:
    return cache_folder() / "evaluations"


def _names_in(model: MegModel, facts: Sequence[ContrastFact], source: str) -> dict[str, str]:
    """By normalised query, the edit in force. Raises MegError when the model does not hold one of the facts."""
    names = names_of((text, edit.id) for edit in model.edits for text in edit.asked())
    if absent := [fact.prompt for fact in facts if normalise_query(fact.prompt) not in names]:
        raise MegError(
            f"{len(absent)} of the {len(facts)} facts of {source} are not in this adapter (first: {absent[0]!r}); "
            "add them (meg add), or fit an adapter to this file (meg fit --edits)."
        )
    return names


def _by_route(model: MegModel, cases: Sequence[ContrastCase]) -> list[Fired]:
    routes = model.route([case.query for case in cases])
    return [Fired(route.edit.id if route.edit else None, route.score) for route in routes]


def _by_answer(system: System, facts: Sequence[ContrastFact], cases: Sequence[ContrastCase]) -> list[Fired]:
    """A fact has fired when the whole answer is its target, or that of the fact that a text asks for."""
    targets = [dict.fromkeys((*sorted(case.own), str(case.fact))) for case in cases]  # what is right goes first
    longest = max(system.token_counts([facts[int(i)].target for of in targets for i in of]) or [0], default=0)
    limits = [max(CONTRAST_TOKENS, longest + ENDING)] * len(cases)
    found = []
    for answer, of in zip(system.answers([case.query for case in cases], limits), targets, strict=True):
        said = [i for i in of if exact_match(answer.text, [facts[int(i)].target])]
        found.append(Fired(said[0] if said else None, answer=answer.text))
    return found
