"""The editing methods that MegEdit is measured beside, each in a file of its own, and what runs them side by side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from megedit.errors import MegError

if TYPE_CHECKING:
    from megedit.baselines.method import Method

# By the name on the command line: file and class. A file is imported when its method is used.
METHODS = {
    "meg": "meg:Meg",
    "ft": "ft:FineTuning",
    "locft-bf": "ft:LocalFineTuning",
    "lora": "lora:Lora",
    "memit": "memit:Memit",
    "pmet": "pmet:Pmet",
    "alphaedit": "alphaedit:AlphaEdit",
    "ultraedit": "ultraedit:UltraEdit",
    "malmen": "malmen:Malmen",
    "grace": "grace:Grace",
    "wise": "wise:Wise",
    "scen": "scen:Scen",
    "retrieval": "retrieval:Retrieval",
    "retrieval-verified": "retrieval:VerifiedRetrieval",
    "semantic-cache": "retrieval:SemanticCache",
}
# Ours without one of its parts each
ABLATIONS = {
    "meg-collected": "meg:Collected",
    "meg-query-alone": "meg:QueryAlone",
    "meg-edit-alone": "meg:EditAlone",
    "meg-untrained-encoder": "meg:Untrained",
    "meg-combined": "meg:Unverified",
    "meg-similarity": "meg:Similar",
    "meg-entropy": "meg:Familiar",
}


def method_named(name: str) -> type[Method]:
    """The class of a method. Raises MegError when there is none of that name."""
    known = METHODS | ABLATIONS
    if name not in known:
        raise MegError(f"There is no method {name!r}; choose from {', '.join(known)}.")
    module, _, member = known[name].partition(":")
    found: type[Method] = getattr(import_module(f"megedit.baselines.{module}"), member)
    return found
