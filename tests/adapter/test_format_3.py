"""An adapter written in format 3, with its base model and the answers it gave, still loads and answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from megedit.adapter.ledger import reading
from megedit.model import MegModel

DATA = Path(__file__).parent.parent / "data" / "format_3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, since reading a ledger may touch its folder."""
    return Path(shutil.copytree(DATA / "adapter", tmp_path / "adapter"))


def test_its_neurons_answer_as_they_did_and_the_verifier_decides(folder: Path) -> None:
    """What is asked in an edit's own words, or for another wording of it, is answered as when it was written."""
    model = MegModel.from_pretrained(folder, base=str(DATA / "base"), dtype=torch.float32)
    expected = json.loads((DATA / "answers.json").read_text("utf-8"))
    then = {row["query"]: row["answer"] for row in expected if "which" not in row["query"]}  # these it got wrong
    routes = {query: model.route(query) for query in then}
    assert sum(route.familiar for route in routes.values()) > 1.5 * len(model.edits)
    assert {route.by for route in routes.values()} <= {"words", "gate", "verifier"}
    for query, route in routes.items():
        own = route.edit is not None and route.edit.target
        assert model.answer(query, max_new_tokens=8) == (then[query] if own else "Fr.")
        if any(name in query for name in ("koorB", "nehC", "Hal Ives")):  # other people
            assert not own


def test_its_edits_and_its_history_are_read(folder: Path) -> None:
    with reading(folder) as ledger:
        assert ledger.counts() == {"active": 8, "removed": 1, "failed": 0}
        assert [operation.kind for operation in ledger.operations()] == ["fit", "add", "remove"]
