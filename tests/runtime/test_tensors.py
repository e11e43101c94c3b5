"""Files of tensors: what is rounded, by how much, and only once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megedit.runtime.tensors import load_tensors, pack, save_tensors, unpack


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 40, generator=generator) * torch.tensor([1e-6, 1e-3, 1.0, 50.0, 0.0])[:, None]
    return {"matrix": matrix, "vector": torch.randn(7, generator=generator), "number": torch.tensor(3.5)}


def test_rows_are_rounded_to_a_127th_of_their_largest_number() -> None:
    tensors = some_tensors()
    packed = pack(tensors)
    assert packed["matrix"].dtype == torch.int8 and packed["matrix.scale"].shape == (5, 1)
    assert packed["vector"].dtype == packed["number"].dtype == torch.float16
    read = unpack(packed)
    assert read.keys() == tensors.keys() and all(tensor.dtype == torch.float32 for tensor in read.values())
    largest = tensors["matrix"].abs().amax(1)
    error = (read["matrix"] - tensors["matrix"]).abs().amax(1)
    assert (error[1:] <= 0.51 * largest[1:] / 127 + 1e-9).all()  # half a step, and the rounding of the scale
    assert error[0] <= 2**-24  # the smallest scale that float16 holds
    assert not read["matrix"][4].any()


def test_rounding_twice_changes_nothing() -> None:
    once = unpack(pack(some_tensors()))
    twice = unpack(pack(once))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("packed", [True, False])
def test_files(tmp_path: Path, packed: bool) -> None:
    tensors = some_tensors()
    save_tensors(tensors, tmp_path / "a.safetensors", packed=packed)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert ("matrix.scale" in load_file(tmp_path / "a.safetensors")) is packed
    read = load_tensors(tmp_path / "a.safetensors")
    expected = unpack(pack(tensors)) if packed else {name: tensor.half().float() for name, tensor in tensors.items()}
    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


def test_a_missing_scale() -> None:
    packed = pack(some_tensors())
    del packed["matrix.scale"]
    with pytest.raises(KeyError, match=r"matrix\.scale"):
        unpack(packed)
