"""An adapter written in format 3, with its base model and the answers it gave, still loads and answers as it did."""

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


def test_it_answers_as_it_did_when_it_was_written(folder: Path) -> None:
    model = MegModel.from_pretrained(folder, base=str(DATA / "base"), dtype=torch.float32)
    expected = json.loads((DATA / "answers.json").read_text("utf-8"))
    queries = [row["query"] for row in expected]
    assert model.answer(queries, max_new_tokens=8) == [row["answer"] for row in expected]
    assert [model.route(query).familiar for query in queries] == [row["familiar"] for row in expected]


def test_its_edits_and_its_history_are_read(folder: Path) -> None:
    with reading(folder) as ledger:
        assert ledger.counts() == {"active": 8, "removed": 1, "failed": 0}
        assert [operation.kind for operation in ledger.operations()] == ["fit", "add", "remove"]
