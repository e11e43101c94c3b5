"""MegEdit: change what a language model knows, thousands of facts at once, and take it back at will.

The method is MeG (arXiv 2512.14395): one dynamic neuron, whose weights a diffusion model generates from the query.
"""

from megedit.edits.edit_set import Edit, EditSet, read_edits
from megedit.errors import MegError
from megedit.fitting import FitSettings, fit
from megedit.model import MegModel, Route

__all__ = ["Edit", "EditSet", "FitSettings", "MegError", "MegModel", "Route", "fit", "read_edits"]
