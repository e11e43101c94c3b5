"""The adapter: a folder of data that turns a base model into the edited one.

`Adapter` and `load_adapter` are loaded on first use: what only reads the ledger does without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megedit.adapter.adapter import Adapter, load_adapter

__all__ = ["Adapter", "load_adapter"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from megedit.adapter import adapter

    return getattr(adapter, name)
