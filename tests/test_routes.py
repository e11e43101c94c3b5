"""Routes and neurons of an edited model: what the router says of a query, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from megedit.adapter.ledger import Records
from megedit.model import MegModel
from megedit.router.index import EditVectors, owners_of
from megedit.router.router import Enrolled, Router
from megedit.routes import Route
from tests.test_model import OTHERS


def test_a_route_and_routes(model: MegModel) -> None:
    edit = model.edits[3]
    one = model.route(edit.prompt)
    assert isinstance(one, Route)
    assert (one.query, one.familiar, one.by, one.edit) == (edit.prompt, True, "words", edit)
    assert one.nearest[0].similarity == pytest.approx(1, abs=5e-3)  # vectors are kept in 8 bits a number
    many = model.route([edit.prompt, *OTHERS])
    assert [route.query for route in many] == [edit.prompt, *OTHERS]
    assert all(route.familiar == (route.score >= route.threshold) for route in many if route.by != "gate")
    assert many[0].edit == edit and all(route.edit is None for route in many if not route.familiar)
    assert model.route([]) == []


def test_only_active_edits_are_nearest(model: MegModel) -> None:
    """Vectors stand for the active edits, in their order, whatever failed between them."""
    rows, router = list(model.adapter.records._rows), model.adapter.router
    rows[2] = (*rows[2][:-1], "failed")
    model.adapter.records = Records(rows)
    vectors = EditVectors.pack(router.vectors[torch.tensor([0, 1, 3, 4, 5, 6, 7])])
    enrolled = [Enrolled(edit.asked(), edit.target) for edit in model.edits]
    parts = (router.encoder, router.network, vectors, owners_of([1] * 7), enrolled, router.calibration, router.verifier)
    model.adapter.router = Router(*parts)
    assert [edit.id for edit in model.edits] == ["edit-0", "edit-1", *(f"edit-{i}" for i in range(3, 8))]
    for edit in model.edits:
        assert model.route(edit.prompt).edit == edit


def test_neurons_of_familiar_rows_only(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [edit.prompt for edit in model.edits]
    rows, weights = model.neurons(queries)
    assert rows.tolist() == list(range(8)) and weights.keys.shape == (8, 32)
    # a query's neuron is its own in any batch: the same sums over blocks of another shape
    _, alone = model.neurons(queries[3:4])
    torch.testing.assert_close(alone.values, weights.values[3:4], rtol=1e-3, atol=1e-3)


def test_what_was_found_for_a_query_is_remembered(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [model.edits[0].prompt, OTHERS[0], model.edits[1].prompt]
    asked: list[str] = []
    encode = model.adapter.encoder.encode

    def count(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return encode(texts)

    monkeypatch.setattr(model.adapter.encoder, "encode", count)
    familiar = [0, 2] + [1] * model.route(OTHERS[0]).familiar
    asked.clear()
    rows, weights = model.neurons(queries)
    again, same = model.neurons([queries[2], queries[2]])
    assert asked == queries
    assert rows.tolist() == sorted(familiar) and again.tolist() == [0, 1]
    assert torch.equal(same.values, weights.values[[-1, -1]]) and torch.equal(same.keys, weights.keys[[-1, -1]])
    monkeypatch.setattr("megedit.routes.REMEMBERED", 2)
    model.neurons(queries)  # the first is forgotten
    model.neurons(queries[1:])
    assert asked == queries
    model.neurons(queries)
    assert asked == [*queries, queries[0]]


def test_nothing_familiar(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = model.adapter.router.calibration
    never = {kind: replace(decision, threshold=1e9) for kind, decision in calibration.decisions.items()}
    monkeypatch.setattr(model.adapter.router, "calibration", replace(calibration, decisions=never))
    rows, weights = model.neurons([edit.rephrases[0] for edit in model.edits])
    assert len(rows) == len(weights) == 0
    rows, weights = model.neurons([])
    assert len(rows) == len(weights) == 0
