"""Operations that need no model do without the libraries of models, which take seconds to import."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "sklearn", "sentence_transformers", "numpy")
LIGHT = (
    "megedit.adapter.ledger",
    "megedit.adapter.change",
    "megedit.operations",
    "megedit.operations.conflicts",
)


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that are loaded after a statement, in a process of its own."""
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_modules_that_need_no_model_load_no_torch() -> None:
    assert loaded_by("import " + ", ".join(LIGHT)) <= loaded_by("import megedit.edits.edit_set")
