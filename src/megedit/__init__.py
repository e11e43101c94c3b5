"""MegEdit: change what a language model knows, thousands of facts at once, and take it back at will.

The method is MeG (arXiv 2512.14395): one dynamic neuron, whose weights a diffusion model generates from the query.

Each public name is imported when it is first used, so that `import megedit` loads no machine learning library.
"""

from typing import TYPE_CHECKING

from megedit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from megedit.edits import Edit, EditSet, load_edits, read_edits
    from megedit.errors import MegError
    from megedit.fitting import FitSettings, fit
    from megedit.model import MegModel
    from megedit.pseudo.knowledge import load_pseudo_knowledge
    from megedit.routes import Route

__all__ = [
    "Edit",
    "EditSet",
    "FitSettings",
    "MegError",
    "MegModel",
    "Route",
    "fit",
    "load_edits",
    "load_pseudo_knowledge",
    "read_edits",
]

_MODULES = {
    "Edit": "edits",
    "EditSet": "edits",
    "FitSettings": "fitting",
    "MegError": "errors",
    "MegModel": "model",
    "Route": "routes",
    "fit": "fitting",
    "load_edits": "edits",
    "load_pseudo_knowledge": "pseudo.knowledge",
    "read_edits": "edits",
}

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
