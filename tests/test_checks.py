"""Checks of generated neurons: the worst are asked first, and a sample of the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megedit import checks
from megedit.checks import answer_check, leads_worst_first
from tests.generator.test_generator import random_generator, some_conditions


class Asked:
    """Leads of neurons, and the rows that were asked for."""

    def __init__(self, leads: list[float]) -> None:
        self.leads, self.rows = torch.tensor(leads), list[int]()

    def __call__(self, rows: Tensor) -> Tensor:
        self.rows += rows.tolist()
        return self.leads[rows]


@pytest.fixture
def by_tens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LEAST", 10)


@pytest.mark.usefixtures("by_tens")
def test_where_the_worst_answer_only_a_sample_of_the_rest_is_asked() -> None:
    ask = Asked([5.0] * 100)
    leads = leads_worst_first(torch.arange(100.0), ask, 0)
    assert set(ask.rows[:10]) == set(range(90, 100)) and len(ask.rows) == 20 == len(set(ask.rows))
    assert leads.isfinite().sum() == 20 and leads[95] == 5.0


@pytest.mark.usefixtures("by_tens")
def test_it_goes_on_until_the_better_half_answers() -> None:
    """Of the first ten the better half fails, of the next ten it answers."""
    ask = Asked([5.0] * 85 + [0.0] * 15)
    leads = leads_worst_first(torch.arange(100.0), ask, 0)
    assert set(ask.rows[:20]) == set(range(80, 100)) and len(ask.rows) == 30
    assert (leads < 1).nonzero().flatten().tolist() == list(range(85, 100))


@pytest.mark.usefixtures("by_tens")
def test_a_failure_in_the_sample_has_all_of_them_asked() -> None:
    ask = Asked([0.0] * 80 + [5.0] * 20)
    leads = leads_worst_first(torch.arange(100.0), ask, 0)
    assert sorted(ask.rows) == list(range(100)) and torch.equal(leads, ask.leads)


def test_few_are_all_asked() -> None:
    ask = Asked([5.0, 0.0, 5.0])
    assert torch.equal(leads_worst_first(torch.rand(3), ask, 0), ask.leads)
    assert leads_worst_first(torch.rand(0), Asked([]), 0).shape == (0,)


def test_a_model_is_not_asked_about_neurons_that_are_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, vectors = random_generator(), some_conditions()
    weights = generator.sample(vectors)
    monkeypatch.setattr(checks, "answer_leads_of", lambda *args: torch.full((len(vectors),), 0.5))
    batches: list[object] = [object()]
    assert answer_check(None, batches, weights, vectors)(generator) == 0.0  # type: ignore[arg-type]  # near, and asked
    weights[0] += 2 * generator.scale
    share = answer_check(None, batches, weights, vectors)(generator)  # type: ignore[arg-type]
    assert share == pytest.approx(1 - 1 / len(vectors))
    assert answer_check(None, [], weights, vectors)(generator) == 1.0  # type: ignore[arg-type]
