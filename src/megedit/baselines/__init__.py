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


def method_named(name: str) -> type[Method]:
    """The class of a method. Raises MegError when there is none of that name."""
    if name not in METHODS:
        raise MegError(f"There is no method {name!r}; choose from {', '.join(METHODS)}.")
    module, _, member = METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(f"megedit.baselines.{module}"), member)
    return found
