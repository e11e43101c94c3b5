"""An explanation agrees with the router, and its answers with those that are given."""

from __future__ import annotations

import pytest
import torch

from megedit.adapter.ledger import Records
from megedit.explain import explain
from megedit.model import MegModel
from megedit.router.index import EditVectors


def test_the_nearest_edit_is_the_one_the_router_takes(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two edits, the one in the very same words goes first, though the other's vector is nearer."""
    router = model.adapter.router
    vectors = router.vectors.unpack()
    swapped = EditVectors.pack(vectors[torch.tensor([1, 0, *range(2, len(vectors))])])
    monkeypatch.setattr(router, "vectors", swapped)
    edit = model.edits[0]
    found = explain(model, edit.prompt)
    assert found.route.nearest == found.nearest[0].edit == edit
    assert found.nearest[0].similarity == pytest.approx(found.route.similarity)
    assert found.nearest[1].similarity > found.nearest[0].similarity
    assert len({near.edit.id for near in found.nearest}) == len(found.nearest) == 5
    # the distance is that of this edit's neuron
    adapter, asked = model.adapter, model.encode([edit.prompt])
    generated = adapter.generator.standardise(adapter.generate(asked, torch.tensor([0])))
    collected = adapter.generator.standardise(adapter.neurons([adapter.records[0]]))
    assert found.distance == float((generated - collected).square().mean())


def test_its_answers_are_those_that_are_given(model: MegModel) -> None:
    edit = model.edits[2]
    found = explain(model, edit.rephrases[0])
    assert found.edited.text == model.answer(edit.rephrases[0])
    with model.disable_edits():
        assert found.base.text == model.answer(edit.rephrases[0])
    for answer in (found.edited, found.base):
        assert "".join(answer.tokens) == answer.text and not answer.cut
        assert all(0 < p <= 1 for p in answer.probabilities) and len(answer.probabilities) == len(answer.tokens)
    cut = explain(model, edit.rephrases[0], max_new_tokens=1)
    assert cut.edited.cut and cut.edited.probabilities == found.edited.probabilities[:1]


def test_a_removed_edit_has_no_distance(model: MegModel) -> None:
    records = model.adapter.records
    model.adapter.records = Records([(*row[:5], "removed") for row in records._rows])
    model.adapter.__dict__.pop("routed", None)
    found = explain(model, model.adapter.records[0].edit.prompt)
    assert found.distance is None and found.nearest[0].status == "removed"
