"""`evaluate`: one call for an edited model of ours, a model edited by other software, or any function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megedit.adapter.adapter import Adapter
from megedit.edits import Edit, EditSet, normalise_query
from megedit.errors import MegError
from megedit.evaluate.protocols import Case, EvaluationSettings, TemplateKind, find_protocol
from megedit.evaluate.result import Evaluation
from megedit.evaluate.run import run
from megedit.evaluate.systems import FunctionSystem, MegSystem, System
from megedit.lm.template import Template
from megedit.model import MegModel
from megedit.pseudo.knowledge import text_key
from megedit.runtime.cache import cache_folder
from megedit.runtime.callbacks import Advance, no_progress

logger = logging.getLogger("megedit")

Function = Callable[[list[str]], list[str]]


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

    Edits that a `MegModel` does not have are not asked; the result counts them as dropped.

    Raises MegError for an unknown protocol, no edits, none that the model has, data without what the protocol needs, or
    questions on which the adapter's encoder or router was tuned.
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
        check=lambda cases: refuse_overlap(adapter, cases),
    )


def template_of(kind: TemplateKind, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The template of a protocol; None for the adapter's own."""
    if kind == "adapter":
        return None
    return Template.for_tokenizer(tokenizer, "raw" if kind == "raw" else "auto", instruction="")


def refuse_overlap(adapter: Adapter, cases: Sequence[Case]) -> None:
    """Raise MegError when a question was among the texts that the encoder or the router was tuned on."""
    seen = set(adapter.seen.tolist())
    known = [case.query for case in cases if text_key(case.query) in seen]
    if known:
        raise MegError(
            f"{len(known)} of the {len(cases)} questions were seen when this adapter's encoder was tuned or its router "
            f"calibrated (first: {known[0]!r}); evaluate on other questions, or fit again with pseudo-knowledge "
            "(--pseudo) that does not hold them."
        )


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
