"""A training run that was stopped at any checkpoint goes on to the same end, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from megedit.encoder import EncoderSettings, TextEncoder
from megedit.generator import WeightGenerator, train_generator
from megedit.router.familiarity import FamiliaritySettings, train_familiarity, training_steps
from megedit.runtime.checkpoint import Checkpoint, State
from tests.generator.test_generator import HIDDEN, QUICK, some_conditions, some_weights
from tests.test_encoder import pseudo_knowledge
from tests.tiny import tiny_encoder


class Stopped(Exception):
    """Stands for a process that was killed."""


@dataclass
class Memory:
    """A checkpoint that stops the run after so many states."""

    stop_after: int | None = None
    states: list[State] = field(default_factory=list)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(lambda: self.states[-1] if self.states else None, self._save)

    def _save(self, state: State) -> None:
        self.states.append(state)
        if len(self.states) == self.stop_after:
            raise Stopped


def whole_and_resumed(run: Callable[[Checkpoint], State], stop_after: int) -> tuple[State, State]:
    whole = run(Memory().checkpoint())
    memory = Memory(stop_after)
    with pytest.raises(Stopped):
        run(memory.checkpoint())
    torch.manual_seed(5)  # the random numbers of another process
    memory.stop_after = None
    return whole, run(memory.checkpoint())


def assert_same(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_the_generator(stop_after: int, warm: bool) -> None:
    weights, conditions = some_weights(21), some_conditions()
    settings = replace(QUICK, even_tail=0.5, hard_example_weight=3.0)
    start = train_generator(weights, conditions, HIDDEN, QUICK, 1, lambda g: 0.0)[0] if warm else None

    def run(checkpoint: Checkpoint) -> State:
        def answered(generator: WeightGenerator) -> float:
            return 1 / (2 + float(generator.sample(conditions).norm()))

        generator, record = train_generator(
            weights, conditions, HIDDEN, settings, 0, answered, start=start, checkpoint=checkpoint
        )
        assert record.steps == settings.min_steps and len(record.answered) == len(record.losses) == 5
        return {**generator.state_dict(), "losses": torch.tensor(record.losses)}

    assert_same(*whole_and_resumed(run, stop_after))


def test_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megedit.encoder.CHECKPOINT_EVERY", 2)
    folder, pseudo = tiny_encoder(tmp_path), pseudo_knowledge()
    settings = EncoderSettings(steps=7, batch_size=8, lr=1e-3)

    def run(checkpoint: Checkpoint) -> State:
        encoder, steps = TextEncoder(folder), list[int]()
        encoder.tune(pseudo, settings, 0, steps.append, checkpoint)
        assert sum(steps) == settings.steps
        return dict(encoder.model.state_dict())

    assert_same(*whole_and_resumed(run, 2))


@pytest.mark.parametrize("warm", [False, True])
def test_the_familiarity_network(warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megedit.router.familiarity.CHECKPOINT_EVERY", 3)
    vectors = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    settings = FamiliaritySettings(blocks=2, steps=10, batch_size=8)
    start = train_familiarity(vectors[:12], settings, 1) if warm else None

    def run(checkpoint: Checkpoint) -> State:
        steps = list[int]()
        network = train_familiarity(vectors, settings, 0, steps.append, start, 8 if warm else 0, checkpoint=checkpoint)
        assert sum(steps) == training_steps(16 if warm else 20, settings)
        return dict(network.state_dict())

    assert_same(*whole_and_resumed(run, 2))
