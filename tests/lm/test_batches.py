"""Rows of tokens as batches: where the padding stands, and contexts that are run once."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from megedit.lm.backbone import Backbone
from megedit.lm.batches import Padded, pad, position_ids
from tests.tiny import VOCAB_SIZE, tiny_model

PAD = 2
ROWS = ((5, 6, 7, 8), (5, 6, 9), (5, 6, 4, 3, 9, 8))


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(tiny_model("llama"), 1)


def states(cache: DynamicCache | None) -> list[Tensor]:
    assert cache is not None
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # type: ignore[union-attr,misc]


def test_padding_on_the_left() -> None:
    batch = pad(ROWS, PAD)
    assert batch.ids.tolist() == [[2, 2, 5, 6, 7, 8], [2, 2, 2, 5, 6, 9], [5, 6, 4, 3, 9, 8]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [1] * 6]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_padding_behind_what_all_rows_begin_with() -> None:
    batch = pad(ROWS, PAD, shared=2)
    assert batch.ids.tolist() == [[5, 6, 2, 2, 7, 8], [5, 6, 2, 2, 2, 9], [5, 6, 4, 3, 9, 8]]
    assert batch.mask.tolist() == [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1], [1] * 6]
    assert batch.position_ids[:, -1].tolist() == [len(row) - 1 for row in ROWS]


def test_tokens_behind_each_row() -> None:
    batch = pad([(5,), (6, 7)], PAD).followed_by([(8, 9), ()], PAD)
    assert batch.ids.tolist() == [[2, 5, 8, 9], [6, 7, 2, 2]]
    assert batch.mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_no_rows_and_empty_rows() -> None:
    assert pad([], PAD).ids.shape == pad([], PAD).followed_by([], PAD).position_ids.shape == (0, 0)
    assert pad([(), (7,)], PAD).ids.tolist() == [[2], [7]]
    assert pad([(), (7,)], PAD).mask.tolist() == [[0], [1]]


def test_positions_do_not_count_padding() -> None:
    assert position_ids(torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("last", [2, 4, 5])
def test_a_context_is_that_of_each_row_alone(backbone: Backbone, shared: int, last: int) -> None:
    batch = pad(ROWS, PAD, shared)
    cache = batch.run_context(backbone, last)
    assert cache is not None and cache.get_seq_length() == last
    for i, row in enumerate(ROWS):
        columns = batch.mask[i, :last].bool()
        if not columns.any():
            continue
        alone = states(pad([row], PAD).run_context(backbone, int(columns.sum())))
        for together, lone in zip(states(cache), alone, strict=True):
            # float32 rounding: the same sums, over blocks of other shapes
            torch.testing.assert_close(together[i, :, columns], lone[0], rtol=1e-4, atol=1e-5)


def test_what_all_rows_share_is_run_as_one_row(backbone: Backbone) -> None:
    seen: list[tuple[int, ...]] = []
    hook = backbone.layers[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    pad(ROWS, PAD, shared=2).run_context(backbone, 5)
    pad(ROWS, PAD, shared=2).run_context(backbone, 2)
    hook.remove()
    assert seen == [(1, 2), (3, 3), (1, 2)]


def test_a_context_of_no_columns(backbone: Backbone) -> None:
    assert pad(ROWS, PAD).run_context(backbone, 0) is None
    assert pad([], PAD).run_context(backbone, 0) is None
    with pytest.raises(ValueError, match="ends within the 2 that all rows share"):
        pad(ROWS, PAD, shared=2).run_context(backbone, 1)


def test_a_block_of_columns() -> None:
    batch = Padded(torch.arange(3, 9)[None] % VOCAB_SIZE, torch.ones(1, 6, dtype=torch.long))
    block = batch.inputs(2, 4)
    assert block["input_ids"].tolist() == [[5, 6]] and block["position_ids"].tolist() == [[2, 3]]
    assert block["attention_mask"].tolist() == [[1, 1, 1, 1]]
