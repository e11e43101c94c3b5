"""Training of encoder and verifier: a short run is written, and one that was stopped goes on as if it had not been."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from megedit.pseudo import load_pseudo_knowledge
from megedit.router.verifier import Verifier
from megedit.runtime.checkpoint import Checkpoint, State
from megedit.runtime.lowrank import apply_changes
from megedit.runtime.shipped import VERIFIER, shipped
from megedit.runtime.tensors import load_tensors
from megedit.settings import MINILM
from training import reading
from training.corpus import corpus
from training.reading import TASKS, Network, Recipe, rate, train

RECIPE = Recipe(steps=4, batch_size=8, lr=7e-4, average=0.999, rank=2)


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches a pool, a checkpoint after each, and few unrelated questions."""
    knowledge = load_pseudo_knowledge()
    few = replace(knowledge, unrelated=knowledge.unrelated[:20])
    monkeypatch.setattr(reading, "load_pseudo_knowledge", lambda: few)
    monkeypatch.setattr(reading, "POOL", 2)
    monkeypatch.setattr(reading, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(reading, "WORKERS", 0)


def trained(
    network: Network,
    checkpoint: Checkpoint,
    advance: Callable[[int], None],
    start: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The changes after a short run."""
    task = TASKS[network](MINILM, corpus()[::400], RECIPE, "cpu")
    return train(task, RECIPE, "cpu", checkpoint, advance, start)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call of transformers
@pytest.mark.parametrize("network", get_args(Network))
def test_a_stopped_run_goes_on_as_if_it_had_not_been(network: Network) -> None:
    saved: list[State] = []
    done: list[int] = []
    whole = trained(network, Checkpoint(save=saved.append), done.append)
    assert sum(done) == RECIPE.steps and [int(state["step"]) for state in saved] == [2, 4]
    again = trained(network, Checkpoint(load=lambda: saved[0]), done.append)
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, msg=name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_what_is_trained_is_what_a_verifier_reads_and_a_run_goes_on_from() -> None:
    whole = trained("verifier", Checkpoint(), lambda steps: None)
    assert whole.keys() == load_tensors(shipped(VERIFIER)).keys()  # what nothing reads, the pooler, is not changed
    verifier = Verifier()
    before = verifier.score(["Who?"], ["Who leads it? = Ines"])
    apply_changes(verifier.eval().model, {name: t for name, t in whole.items() if not name.startswith("head.")})
    assert verifier.score(["Who?"], ["Who leads it? = Ines"]) != before
    onwards = trained("verifier", Checkpoint(), lambda steps: None, start=whole)
    assert any((onwards[name] - value).abs().max() > 0 for name, value in whole.items())
    assert all((onwards[name] - value).abs().max() < 0.1 for name, value in whole.items())


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.03 and max(rates) > 0.9 and rates[-1] == pytest.approx(0.02)
