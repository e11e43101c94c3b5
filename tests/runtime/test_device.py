"""Devices that can be used, and number formats: bfloat16 where it is fast, and nowhere else."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from megedit.cli.options import usable_device
from megedit.encoder import EncoderSettings, TextEncoder
from megedit.errors import MegError
from megedit.generator import GeneratorSettings, WeightGenerator
from megedit.lm.loading import load_base
from megedit.router.familiarity import FamiliaritySettings, train_familiarity
from megedit.runtime import device
from megedit.runtime.device import default_dtype, first_device, hold_cast, mixed_precision
from tests.test_encoder import pseudo_knowledge
from tests.tiny import tiny_encoder


def set_processor(monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A processor that is faster in bfloat16, and one that has it and is not."""
    set_processor(monkeypatch, avx512_bf16=True, amx=request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [
        (False, False, torch.float32),  # bfloat16 is emulated
        (True, False, torch.float32),  # it is there, at half the speed of float32
        (True, True, torch.bfloat16),
    ],
)
def test_the_default_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, dtype: torch.dtype
) -> None:
    set_processor(monkeypatch, avx512_bf16, amx)
    assert default_dtype("cpu") == default_dtype(torch.device("cpu")) == dtype
    assert default_dtype("meta") == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_default_of_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(device, "first_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    set_processor(monkeypatch, avx512_bf16=False, amx=False)
    assert default_dtype("cuda:1") == dtype


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "warp", "cpu:"])
def test_a_device_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("it can be used here")
    message = rf"^The device '{name}' cannot be used here \(.*[^.]\); choose another\.$"
    for use in (first_device, default_dtype, usable_device, lambda name: load_base(str(tmp_path), device=name)):
        with pytest.raises(MegError, match=message):
            use(name)


def test_the_cpu_can_always_be_used() -> None:
    assert first_device("cpu") == torch.device("cpu") and usable_device("cpu") == "cpu"
    assert usable_device("auto") == "auto" and first_device("auto").type in ("cpu", "cuda")


def test_matrices_are_multiplied_in_the_default(fast: bool) -> None:
    matrix = torch.eye(2)
    with mixed_precision("cpu"):
        assert (matrix @ matrix).dtype == default_dtype("cpu")
    for dtype in (torch.bfloat16, torch.float32):
        with mixed_precision("cpu", dtype):
            assert (matrix @ matrix).dtype == dtype
    assert (matrix @ matrix).dtype == torch.float32


def test_training_emulates_nothing(fast: bool, formats: set[torch.dtype], tmp_path: Path) -> None:
    train_familiarity(torch.eye(4), FamiliaritySettings(blocks=1, steps=2), seed=0)
    assert formats == {default_dtype("cpu")}
    formats.clear()
    encoder = TextEncoder(tiny_encoder(tmp_path))
    encoder.tune(pseudo_knowledge(), EncoderSettings(steps=1, batch_size=8), 0, lambda done: None)
    assert formats == {default_dtype("cpu")}


def test_matrices_held_in_the_default_change_no_vector(fast: bool, tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_encoder(tmp_path), "mean")
    queries = ["who wrote emma", "the capital of france is"]
    before = encoder.encode(queries)
    hold_cast(encoder.model, "cpu")
    layers = [module for module in encoder.model.modules() if isinstance(module, nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {default_dtype("cpu")}
    torch.testing.assert_close(encoder.encode(queries), before, rtol=0, atol=0)


def test_matrices_held_in_the_default_change_no_neuron(fast: bool) -> None:
    generator = WeightGenerator(20, 8, GeneratorSettings(patch=8, width=32, depth=1, heads=2, trunk_width=64)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.1)
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    before = generator.sample(vectors)
    hold_cast(generator, "cpu")
    torch.testing.assert_close(generator.sample(vectors), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_held_in_a_format_that_was_chosen(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    hold_cast(network, "cpu", dtype)
    assert [layer.weight.dtype for layer in network] == [dtype, torch.float32]
