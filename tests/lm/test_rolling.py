"""A batch whose rows come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from megedit.lm.backbone import Backbone
from megedit.lm.rolling import RollingBatch
from tests.tiny import tiny_model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_that_come_and_go_have_the_logits_of_rows_alone(family: str) -> None:
    """Whatever joins and leaves, each row's next token is that of the row by itself."""
    random_model, rng = tiny_model(family), random.Random(0)
    batch = RollingBatch(Backbone(random_model, 1), pad_id=2)
    model: Any = random_model
    rows: list[list[int]] = []
    for _ in range(6):
        prompts = [[rng.randrange(3, 300) for _ in range(rng.randint(1, 40))] for _ in range(rng.randint(0, 3))]
        order = batch.join(prompts)
        rows += [prompts[i] for i in order]
        if not rows:
            continue
        output = model.generate(
            **batch.inputs, max_new_tokens=2, do_sample=False, pad_token_id=2, eos_token_id=None,
            return_dict_in_generate=True, use_cache=True,
        )  # fmt: skip
        new = output.sequences[:, -2:].tolist()
        for i, row in enumerate(rows):
            alone = model.generate(
                torch.tensor([row]), max_new_tokens=2, do_sample=False, pad_token_id=2, eos_token_id=None
            )
            assert alone[0, -2:].tolist() == new[i]
        kept = [i for i in range(len(rows)) if rng.random() < 0.6]
        batch.keep(kept, output)
        rows = [rows[i] + new[i] for i in kept]
        assert batch.ids.shape == batch.mask.shape == (len(rows), max(map(len, rows), default=0))
