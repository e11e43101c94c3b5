"""The weight generator: denoisers, scales, sampling, training and its stop rule."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megedit.generator import PRESETS, GeneratorSettings, WeightGenerator, train_generator, training
from megedit.generator.denoiser import DiT
from megedit.generator.training import far_off, neuron_frequencies

HIDDEN, CONDITION, EDITS = 10, 16, 8
LENGTHS = (2 * HIDDEN, 2 * HIDDEN + 1)  # without and with the bias; neither is a multiple of the patch
TINY = GeneratorSettings(
    patch=8,
    width=32,
    depth=1,
    heads=2,
    trunk_width=64,
    min_steps=1000,
    passes=1,
    check_every=50,
    batch_size=32,
    lr=5e-3,
)


def some_conditions(rows: int = EDITS) -> Tensor:
    vectors = torch.randn(rows, CONDITION, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(vectors, dim=1)


def some_weights(length: int, rows: int = EDITS) -> Tensor:
    """Keys of size 0.01 around 1, biases of size 5, values of size 3."""
    weights = torch.randn(rows, length, generator=torch.Generator().manual_seed(2))
    weights[:, :HIDDEN] = 1 + 0.01 * weights[:, :HIDDEN]
    weights[:, HIDDEN:-HIDDEN] *= 5
    weights[:, -HIDDEN:] *= 3
    return weights


def random_generator(settings: GeneratorSettings = TINY, length: int = 21) -> WeightGenerator:
    """A generator that has learned nothing and whose denoiser says something different everywhere."""
    generator = WeightGenerator(length, CONDITION, settings)
    generator.fit_scales(some_weights(length), some_conditions(), HIDDEN, seed=0)
    rng = torch.Generator().manual_seed(3)
    for parameter in generator.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    return generator.eval()


def never(generator: WeightGenerator) -> float:
    return 0.0


@pytest.mark.parametrize("trunk_width", [64, 0])
def test_the_dit_starts_at_zero(trunk_width: int) -> None:
    dit = DiT(21, CONDITION, replace(TINY, trunk_width=trunk_width))
    assert (dit.trunk is None) == (trunk_width == 0)
    output = dit(torch.randn(3, 21), torch.tensor([0, 500, 999]), torch.randn(3, CONDITION))
    assert output.shape == (3, 21) and not output.any()
    tokens = torch.randn(3, 3, TINY.width)
    for block in dit.blocks:
        assert torch.equal(block(tokens, torch.randn(3, TINY.width)), tokens)


@pytest.mark.parametrize("length", [1, 8, 20, 21])
def test_any_length(length: int) -> None:
    denoiser = DiT(length, CONDITION, TINY)
    assert denoiser(torch.randn(2, length), torch.tensor([1, 2]), torch.randn(2, CONDITION)).shape == (2, length)


@pytest.mark.parametrize(("steps", "expected"), [(1, [999]), (4, [999, 749, 499, 249])])
def test_sampling_starts_from_pure_noise(steps: int, expected: list[int]) -> None:
    generator, asked = random_generator(replace(TINY, sample_steps=steps)), list[int]()
    hook = generator.denoiser.register_forward_hook(lambda module, args, output: asked.append(int(args[1][0])))
    generator.sample(some_conditions())
    hook.remove()
    assert asked == expected


def test_what_the_dit_reads() -> None:
    dit = random_generator().denoiser
    inputs = torch.randn(1, 21), torch.tensor([500]), torch.randn(1, CONDITION)
    output = dit(*inputs)
    others = torch.randn(1, 21), torch.tensor([501]), torch.randn(1, CONDITION)
    for i in range(3):
        assert not torch.allclose(dit(*inputs[:i], others[i], *inputs[i + 1 :]), output)


@pytest.mark.parametrize("length", LENGTHS)
def test_each_block_has_its_own_scale(length: int) -> None:
    weights = some_weights(length)
    generator = random_generator(length=length)
    standard = generator.standardise(weights)
    torch.testing.assert_close(standard * generator.scale + generator.mean, weights)
    torch.testing.assert_close(
        standard.mean(0), torch.zeros(length), rtol=0, atol=1e-4
    )  # rounding: keys are of size 1, spread 0.01
    blocks = [slice(0, HIDDEN), slice(-HIDDEN, None)] + [slice(HIDDEN, HIDDEN + 1)] * (length % 2)
    for block in blocks:
        assert len(generator.scale[block].unique()) == 1
        torch.testing.assert_close(standard[:, block].square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert len(generator.scale.unique()) == len(blocks)
    conditions = generator._condition(some_conditions())
    torch.testing.assert_close(conditions.std(0, correction=0), torch.ones(CONDITION))


class Oracle(nn.Module):
    """A denoiser that knows the clean weights."""

    def __init__(self, generator: WeightGenerator, clean: Tensor) -> None:
        super().__init__()
        self.alphas = generator.scheduler.alphas_cumprod
        self.velocity = generator.settings.prediction == "v_prediction"
        self.clean = clean

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        if not self.velocity:
            return self.clean
        alpha = self.alphas[timesteps][:, None]
        noise = (noisy - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        velocity: Tensor = alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean
        return velocity


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_perfect_denoiser_gives_the_weights(prediction: Any, steps: int) -> None:
    weights, conditions = some_weights(21), some_conditions()
    generator = random_generator(replace(TINY, prediction=prediction, sample_steps=steps))
    generator.denoiser = Oracle(generator, generator.standardise(weights))
    # float32 rounding: the velocity is divided by the share of noise, which is small at the last step
    torch.testing.assert_close(generator.sample(conditions), weights, rtol=1e-3, atol=1e-3)
    loss = generator.loss(weights, conditions, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("float32")
def test_one_step_is_that_of_the_sampler() -> None:
    """It is taken without diffusers; the values are those of its DDIM sampler, bit for bit."""
    generator, conditions = random_generator(replace(TINY, sample_steps=1)), some_conditions()
    noise = generator.initial_noise.expand(len(conditions), -1)
    generator.scheduler.set_timesteps(1)
    (timestep,) = generator.scheduler.timesteps
    with torch.no_grad():
        predicted = generator.denoiser(noise, timestep.expand(len(noise)), generator._condition(conditions))
    stepped = generator.scheduler.step(predicted, timestep, noise, eta=0.0, return_dict=False)[0]
    assert torch.equal(generator.sample(conditions), stepped * generator.scale + generator.mean)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_sampling_is_deterministic_row_by_row(prediction: Any) -> None:
    generator, conditions = random_generator(replace(TINY, prediction=prediction)), some_conditions()
    torch.manual_seed(1)
    samples = generator.sample(conditions)
    torch.manual_seed(2)
    assert torch.equal(generator.sample(conditions), samples)
    order = torch.tensor([5, 0, 3])
    # float32 rounding: matrix products over batches of other sizes
    torch.testing.assert_close(generator.sample(conditions[order]), samples[order], rtol=1e-3, atol=1e-4)
    for row in range(EDITS):
        torch.testing.assert_close(generator.sample(conditions[[row]]), samples[[row]], rtol=1e-3, atol=1e-4)
    assert samples.dtype == torch.float32 and not samples.requires_grad
    assert len(samples.unique(dim=0)) == EDITS


def test_no_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The denoiser is not asked: on a GPU, attention over no rows fails."""
    generator = random_generator()
    monkeypatch.setattr(generator.denoiser, "forward", lambda *args: pytest.fail("there is nothing to sample"))
    samples = generator.sample(torch.zeros(0, CONDITION))
    assert samples.shape == (0, 21) and samples.dtype == torch.float32


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_the_number_format_of_products(compute_dtype: torch.dtype) -> None:
    settings, seen = replace(QUICK, min_steps=1), set[torch.dtype]()
    generator, _ = train_generator(
        some_weights(21), some_conditions(), HIDDEN, settings, 0, never, compute_dtype=compute_dtype
    )
    assert generator.compute_dtype == compute_dtype
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float32}
    hook = generator.denoiser.head.register_forward_hook(  # type: ignore[union-attr]
        lambda module, args, output: seen.add(output.dtype)
    )
    sampled = generator.sample(some_conditions())
    generator.loss(some_weights(21), some_conditions(), torch.Generator().manual_seed(0))
    hook.remove()
    assert seen == {compute_dtype} and sampled.dtype == torch.float32


def test_the_seed_draws_the_noise() -> None:
    first, again, other = (WeightGenerator(21, CONDITION, TINY) for _ in range(3))
    for generator, seed in ((first, 0), (again, 0), (other, 1)):
        generator.fit_scales(some_weights(21), some_conditions(), HIDDEN, seed)
    assert torch.equal(first.initial_noise, again.initial_noise)
    assert not torch.equal(first.initial_noise, other.initial_noise)


def close_to(weights: Tensor) -> Callable[[WeightGenerator], float]:
    """The share of edits whose sample is within a tenth of each block's spread."""
    scales = WeightGenerator(weights.shape[1], CONDITION, TINY)
    scales.fit_scales(weights, some_conditions(), HIDDEN, 0)

    def share(generator: WeightGenerator) -> float:
        errors = scales.standardise(generator.sample(some_conditions())) - scales.standardise(weights)
        return (errors.square().mean(1).sqrt() < 0.1).float().mean().item()

    return share


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 21),
        ({"prediction": "v_prediction", "sample_steps": 20}, 20),
        ({"trunk_width": 0}, 20),
    ],
    ids=["x0", "v", "no trunk"],
)
def test_a_few_weights_are_learned(changes: dict[str, Any], length: int) -> None:
    settings = replace(TINY, **changes)
    weights, conditions = some_weights(length), some_conditions()
    answered = close_to(weights)
    generator, record = train_generator(weights, conditions, HIDDEN, settings, 0, answered)
    assert record.answered[-2:] == (1.0, 1.0) and record.steps < settings.min_steps
    assert record.losses[-1] < 0.2 * record.losses[0]
    assert answered(generator) == 1.0
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())


def train(
    script: list[float], settings: GeneratorSettings, seed: int = 0
) -> tuple[WeightGenerator, list[Tensor], Any, list[int]]:
    """Train with scripted results of the checks; also what was sampled at each check, and the progress."""
    results, sampled, done = iter(script), list[Tensor](), list[int]()

    def answered(generator: WeightGenerator) -> float:
        sampled.append(generator.sample(some_conditions()))
        return next(results)

    generator, record = train_generator(
        some_weights(21), some_conditions(), HIDDEN, settings, seed, answered, done.append
    )
    return generator, sampled, record, done


QUICK = replace(TINY, min_steps=25, check_every=5, batch_size=4, ema=0.5)


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        ([1.0, 1.0], 10),
        ([1.0, 0.9, 1.0, 1.0], 20),
        ([0.5, 1.0, 1.0], 15),
        ([1.0, 0.9, 1.0, 0.9, 1.0], 25),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 25),
    ],
)
def test_two_perfect_checks_stop(script: list[float], steps: int) -> None:
    _, _, record, done = train(script, QUICK)
    assert record.steps == steps == sum(done)
    assert record.answered == tuple(script)
    assert len(record.losses) == len(script)


def test_the_last_steps_are_checked() -> None:
    _, sampled, record, _ = train([0.0, 0.0, 0.0], replace(QUICK, check_every=10))
    assert record.steps == 25 and len(sampled) == len(record.losses) == 3


def test_checks_grow_fewer_rather_than_with_the_steps() -> None:
    _, sampled, record, _ = train([0.0] * training.CHECKS, replace(QUICK, min_steps=60, check_every=1))
    assert record.steps == 60 and len(sampled) == len(record.losses) == training.CHECKS


@pytest.mark.parametrize(
    ("script", "best"), [([0.2, 0.8, 0.5, 0.1, 0.3], 1), ([0.2, 0.8, 0.8, 0.1, 0.3], 2), ([1.0, 1.0], 1)]
)
def test_the_best_check_ships(script: list[float], best: int) -> None:
    generator, sampled, _, _ = train(script, QUICK)
    assert torch.equal(generator.sample(some_conditions()), sampled[best])
    assert not torch.equal(sampled[best], sampled[0])


def test_a_seed_names_a_generator() -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    first, _, record, _ = train([0.0] * 5, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(98)
    again, _, record_again, _ = train([0.0] * 5, QUICK)
    other, _, _, _ = train([0.0] * 5, QUICK, seed=1)
    assert record_again == record
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.sample(some_conditions()), other.sample(some_conditions()))


def test_a_rare_neuron_is_drawn_more_often_than_its_share() -> None:
    weights = some_weights(21)[[0, 0, 0, 0, 1, 2, 2, 2]]
    assert neuron_frequencies(weights).tolist() == [4, 4, 4, 4, 1, 3, 3, 3]
    weights[1, 0] += 1e-5  # lost in half precision
    assert neuron_frequencies(weights).tolist() == [4, 4, 4, 4, 1, 3, 3, 3]
    assert neuron_frequencies(weights[:0]).shape == (0,)


def test_what_is_far_off() -> None:
    generator, vectors = random_generator(), some_conditions()
    weights = generator.sample(vectors)
    weights[2] += generator.scale  # every number off by its standard deviation
    weights[5] += 0.5 * generator.scale
    assert far_off(generator, weights, vectors).nonzero().flatten().tolist() == [2]


def test_in_the_end_the_wrong_ones_are_drawn_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    odds: list[list[float]] = []
    draw = torch.multinomial

    def watched(weights: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        odds.append(weights.tolist())
        return draw(weights, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", watched)
    monkeypatch.setattr(training, "far_off", lambda *args: torch.tensor([True, *[False] * (EDITS - 1)]))
    settings = replace(
        QUICK, min_steps=8, passes=0, check_every=2, even_tail=0.5, hard_example_weight=4.0, rarity_power=0.0
    )
    train_generator(some_weights(21), some_conditions(), HIDDEN, settings, 0, never)
    assert odds[:4] == [[1.0] * EDITS] * 4 and odds[4:] == [[4.0, *[1.0] * (EDITS - 1)]] * 4


def test_training_that_never_settles_looks_for_no_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling all edits after the last step would be for nothing, and take hours with the paper's preset."""
    monkeypatch.setattr(training, "far_off", lambda *args: pytest.fail("there are no more draws"))
    settings = replace(QUICK, min_steps=4, passes=0, check_every=2, even_tail=0.0)
    _, record = train_generator(some_weights(21), some_conditions(), HIDDEN, settings, 0, never)
    assert record.steps == 4 and len(record.answered) == 2


def test_one_edit() -> None:
    weights, conditions = some_weights(21, rows=1), some_conditions(1)
    generator, _ = train_generator(weights, conditions, HIDDEN, QUICK, 0, never)
    sample = generator.sample(conditions)
    torch.testing.assert_close(sample, weights, rtol=1e-4, atol=1e-4)  # the mean is the edit, the scale 1e-6


def test_state_dict_round_trip() -> None:
    generator, conditions = random_generator(), some_conditions()
    loaded = WeightGenerator(21, CONDITION, TINY)
    loaded.load_state_dict(generator.state_dict())
    assert torch.equal(loaded.eval().sample(conditions), generator.sample(conditions))
    names = set(generator.state_dict())
    assert {"mean", "scale", "condition_mean", "condition_scale", "initial_noise"} <= names
    assert not any("rates" in name for name in names)  # a constant


def test_the_presets() -> None:
    assert PRESETS["fast"].generator == GeneratorSettings()
    paper = PRESETS["paper"].generator
    assert (paper.depth, paper.width, paper.heads) == (12, 768, 12)  # DiT-B
    assert (paper.prediction, paper.trunk_width) == ("v_prediction", 0)


@pytest.mark.parametrize(("edits", "steps"), [(1, 40), (1000, 40), (1001, 41), (10_000, 400)])
def test_how_many_steps(edits: int, steps: int) -> None:
    assert GeneratorSettings(min_steps=40, passes=10, batch_size=250).training_steps(edits) == steps


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction": "epsilon"},
        {"width": 30, "heads": 4},
        {"heads": 0},
        {"patch": 0},
        {"depth": 0},
        {"min_steps": 0},
        {"passes": -1},
        {"even_tail": 1.5},
        {"hard_example_weight": 0.5},
        {"trunk_width": -1},
        {"timestep_bias": 0.0},
        {"check_every": 0},
        {"batch_size": 0},
        {"sample_steps": 0},
        {"sample_steps": 1001},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GeneratorSettings(**wrong)
