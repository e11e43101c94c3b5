"""The life of an edit in an adapter: added, updated, removed, undone, rolled back, consolidated.

The operations are loaded on first use: those that need no model do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megedit.operations.adding import add, update
    from megedit.operations.consolidation import consolidate
    from megedit.operations.operations import Outcome, remove, rollback, undo

__all__ = ["Outcome", "add", "consolidate", "remove", "rollback", "undo", "update"]

_MODULES = {"add": "adding", "update": "adding", "consolidate": "consolidation"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'operations')}"), name)
