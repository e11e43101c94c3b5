"""A model's modules once more, around the same tensors."""

from __future__ import annotations

import torch

from megedit.lm.twin import twin
from tests.tiny import tiny_model


def test_a_twin_shares_tensors_and_nothing_else() -> None:
    model = tiny_model("llama")
    other = twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}
    before = model(torch.tensor([[5, 6, 7]])).logits
    other.get_output_embeddings().forward = lambda hidden: hidden * 0
    other.set_attn_implementation("eager")
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)
    assert model.config._attn_implementation != "eager"
