"""An explanation agrees with the router, and its answers with those that are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.explain import explain
from megedit.model import MegModel
from megedit.operations import remove
from megedit.router.index import EditVectors
from tests.operations.test_operations import new_edit, put

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def test_the_nearest_edit_is_the_one_the_router_takes(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two edits, the one in the very same words is taken, though the other's vector is nearer."""
    router = model.adapter.router
    vectors = router.vectors.unpack()
    swapped = EditVectors.pack(vectors[torch.tensor([1, 0, *range(2, len(vectors))])])
    monkeypatch.setattr(router, "vectors", swapped)
    edit = model.edits[0]
    found = explain(model, edit.prompt)
    assert found.route.edit == edit
    assert len({near.edit.id for near in found.nearest}) == len(found.nearest) == 5
    scores = [near.score for near in found.nearest]
    assert None not in scores and scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    # the distance is that of this edit's neuron
    adapter, asked = model.adapter, model.adapter.encoder.encode([edit.prompt])
    generated = adapter.generator.standardise(adapter.generate(asked, torch.tensor([0])))
    collected = adapter.generator.standardise(adapter.neurons([adapter.records[0]]))
    assert found.distance == pytest.approx(float((generated - collected).square().mean()), rel=1e-3)


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


def test_an_adapter_without_edits_in_force(adapter_folder: Path, base: Base) -> None:
    remove(adapter_folder, [edit.id for edit in load_adapter(adapter_folder).active_edits])
    model = MegModel(*base, load_adapter(adapter_folder))
    found = explain(model, "Where was Ada Brook born?", max_new_tokens=4)
    assert found.distance is None and found.nearest == () and found.edited == found.base
    assert not found.route.familiar and found.route.edit is None


def test_an_explanation(adapter_folder: Path, base: Base) -> None:
    put(adapter_folder, new_edit())
    remove(adapter_folder, ["edit-5"])
    model = MegModel(*base, load_adapter(adapter_folder))
    found = explain(model, model.edits[0].prompt, max_new_tokens=8)
    assert found.route == model.route(model.edits[0].prompt) and found.route.neuron == "generated"
    assert found.route.edit == model.edits[0] and found.route.nearest[0].similarity == pytest.approx(1, abs=0.01)
    assert len(found.nearest) == 5 and found.distance is not None and found.distance < 1
    assert found.edited.text == "Par." and "".join(found.edited.tokens).strip() == "Par."
    assert len(found.edited.probabilities) == len(found.edited.tokens)
    assert all(0 < p <= 1 for answer in (found.edited, found.base) for p in answer.probabilities)
    removed = explain(model, "Where was Flo Gray born?", max_new_tokens=8)
    assert removed.route.neuron is None and removed.route.edit is None
    assert removed.edited == removed.base
    with pytest.raises(MegError, match="empty"):
        explain(model, " ")
