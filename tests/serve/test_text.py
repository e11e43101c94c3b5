"""The text of an answer, and the batch whose rows come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megedit.errors import MegError
from megedit.lm.backbone import Backbone
from megedit.lm.rolling import RollingBatch
from megedit.lm.twin import twin
from megedit.serve.settings import ServeSettings
from megedit.serve.text import AnswerText
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text(alphabet="ab€ü c", max_size=30), st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=3))
def test_the_text_is_cut_where_a_stop_string_begins(text: str, stop: list[str]) -> None:
    answer, shown = AnswerText(TOKENIZER, tuple(stop)), ""
    for token in TOKENIZER(text).input_ids:
        shown += answer.add(token)
        assert text.startswith(shown)
        if answer.stopped:
            break
    shown += answer.rest()
    ends = [text.find(word) for word in stop if word in text]
    assert shown == (text[: min(ends)] if ends else text)


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
            batch.ids, attention_mask=batch.mask, past_key_values=batch.cache, max_new_tokens=2, do_sample=False,
            pad_token_id=2, eos_token_id=None, return_dict_in_generate=True, use_cache=True,
        )  # fmt: skip
        new = output.sequences[:, -2:].tolist()
        for i, row in enumerate(rows):
            alone = model.generate(
                torch.tensor([row]), max_new_tokens=2, do_sample=False, pad_token_id=2, eos_token_id=None
            )
            assert alone[0, -2:].tolist() == new[i]
        kept = [i for i in range(len(rows)) if rng.random() < 0.6]
        batch.keep(kept, output.sequences, output.past_key_values)
        rows = [rows[i] + new[i] for i in kept]
        assert batch.ids.shape == batch.mask.shape == (len(rows), max(map(len, rows), default=0))


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


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "0.0.0.0", "edit_key": "e" * 16}, "--api-key"),
        ({"api_key": "short"}, "at least 16"),
        ({"api_key": "x" * 16, "edit_key": "x" * 16}, "two keys"),
        ({"edit_key": "ümlaut-is-not-ascii"}, "ASCII"),
        ({"batch": 0}, "--batch"),
    ],
)
def test_a_server_that_would_be_open_does_not_start(options: dict[str, object], part: str) -> None:
    with pytest.raises(MegError, match=part):
        ServeSettings(name="x", **options)  # type: ignore[arg-type]


def test_addresses_of_this_machine_need_no_keys() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        ServeSettings(name="x", host=host)
    ServeSettings(name="x", host="0.0.0.0", api_key="a" * 16, edit_key="b" * 16)
