"""Number formats: bfloat16 is used where the processor has it, and nowhere else."""

from pathlib import Path

import pytest
import torch
from torch import nn

from megedit.encoder import EncoderSettings, TextEncoder
from megedit.generator import GeneratorSettings, WeightGenerator
from megedit.router.familiarity import FamiliaritySettings, train_familiarity
from megedit.runtime.device import default_dtype, hold_cast, mixed_precision
from tests.test_encoder import pseudo_knowledge
from tests.tiny import tiny_encoder


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(request.param)


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The formats in which the outputs of linear layers are computed from now on."""
    found: set[torch.dtype] = set()
    forward = nn.Linear.forward

    def watched(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = forward(layer, x)
        found.add(output.dtype)
        return output

    monkeypatch.setattr(nn.Linear, "forward", watched)
    return found


def test_the_default_is_what_the_processor_has(native: bool) -> None:
    assert default_dtype("cpu") == (torch.bfloat16 if native else torch.float32)
    assert default_dtype("meta") == torch.float32


def test_matrices_are_multiplied_in_the_default(native: bool) -> None:
    matrix = torch.eye(2)
    with mixed_precision("cpu"):
        assert (matrix @ matrix).dtype == default_dtype("cpu")
    assert (matrix @ matrix).dtype == torch.float32


def test_training_emulates_nothing(native: bool, formats: set[torch.dtype], tmp_path: Path) -> None:
    train_familiarity(torch.eye(4), FamiliaritySettings(blocks=1, steps=2), seed=0)
    assert formats == {default_dtype("cpu")}
    formats.clear()
    encoder = TextEncoder(tiny_encoder(tmp_path))
    encoder.tune(pseudo_knowledge(), EncoderSettings(steps=1, batch_size=8), 0, lambda done: None)
    assert formats == {default_dtype("cpu")}


def test_matrices_held_in_the_default_change_no_vector(native: bool, tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_encoder(tmp_path), "mean")
    queries = ["who wrote emma", "the capital of france is"]
    before = encoder.encode(queries)
    hold_cast(encoder.model, "cpu")
    layers = [module for module in encoder.model.modules() if isinstance(module, nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {default_dtype("cpu")}
    torch.testing.assert_close(encoder.encode(queries), before, rtol=0, atol=0)


def test_matrices_held_in_the_default_change_no_neuron(native: bool) -> None:
    generator = WeightGenerator(20, 8, GeneratorSettings(patch=8, width=32, depth=1, heads=2, trunk_width=64)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.1)
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    before = generator.sample(vectors)
    hold_cast(generator, "cpu")
    torch.testing.assert_close(generator.sample(vectors), before, rtol=0, atol=0)
