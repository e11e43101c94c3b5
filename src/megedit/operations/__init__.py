"""The life of an edit in an adapter: added, updated, removed, undone, rolled back, consolidated.

The operations are loaded on first use: those that need no model do without torch.
"""

from typing import TYPE_CHECKING

from megedit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from megedit.operations.adding import add, update
    from megedit.operations.consolidation import consolidate
    from megedit.operations.operations import Outcome, remove, rollback, undo

__all__ = ["Outcome", "add", "consolidate", "remove", "rollback", "undo", "update"]

_MODULES = {
    "Outcome": "operations",
    "add": "adding",
    "consolidate": "consolidation",
    "remove": "operations",
    "rollback": "operations",
    "undo": "operations",
    "update": "adding",
}

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
