"""The adapter: a folder of data that turns a base model into the edited one.

`Adapter` and `load_adapter` are loaded on first use: what only reads the ledger does without torch.
"""

from typing import TYPE_CHECKING

from megedit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from megedit.adapter.adapter import Adapter, load_adapter

__all__ = ["Adapter", "load_adapter"]

__getattr__, __dir__ = on_first_use(__name__, dict.fromkeys(__all__, "adapter"))
