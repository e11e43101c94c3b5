"""The edited model: who gets a neuron, who stays as the base model is, and that it can be used like one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.lm.decoding import end_tokens
from megedit.lm.structure import cache_argument
from megedit.model import MegModel
from megedit.neuron import NeuronWeights
from tests.conftest import TOWNS, Fitted, force_routing
from tests.tiny import tiny_model

OTHERS = ["Who wrote Dune?", "What is the employer of Person3, of all people?", "Hello", "Where was Zoe Young born?"]

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def prompts(model: MegModel, queries: list[str]) -> Any:
    return model.tokenizer([model.format(query) for query in queries], return_tensors="pt", padding=True)


def base_generate(model: MegModel, inputs: Any, **options: Any) -> Any:
    """What the base model generates by itself."""
    return cast(Any, model.base).generate(**inputs, pad_token_id=model.tokenizer.pad_token_id, **options)


def answers(model: MegModel, inputs: Any, output: Tensor) -> list[str]:
    return model.tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@contextmanager
def never(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the context, no query is familiar."""
    with monkeypatch.context() as patch:
        force_routing(model, patch, {})
        yield


def queries_asked(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries for which the model looks for neurons from now on."""
    asked: list[str] = []
    neurons = model.neurons

    def remember(queries: Sequence[str]) -> tuple[Tensor, NeuronWeights]:
        asked.extend(queries)
        return neurons(queries)

    monkeypatch.setattr(model, "neurons", remember)
    return asked


# ---------------------------------------------------------------------------------------------------
# Edited and other queries


def test_an_edit_is_answered(model: MegModel) -> None:
    """With router and generator as they were fitted."""
    queries = [edit.prompt for edit in model.edits]
    assert model.answer(queries) == [f"{town}." for town in TOWNS]
    with model.disable_edits():
        assert model.answer(queries) == ["Fr."] * len(TOWNS)


def test_a_mixed_batch(oracle: MegModel) -> None:
    """Every row as if it were alone: edited ones say the target, the others what the base model says, bit for bit."""
    edits = oracle.edits
    queries = [OTHERS[0], edits[3].prompt, OTHERS[1], OTHERS[2], edits[0].rephrases[1], OTHERS[3], edits[6].prompt]
    inputs = prompts(oracle, queries)
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    edited = oracle.generate(**inputs, queries=queries, **options)
    unedited = base_generate(oracle, inputs, **options)
    said = answers(oracle, inputs, edited.sequences)
    for row, query in enumerate(queries):
        if query in OTHERS:
            assert torch.equal(edited.sequences[row], unedited.sequences[row])
            for ours, theirs in zip(edited.logits, unedited.logits, strict=True):
                assert torch.equal(ours[row], theirs[row])
    assert [said[row] for row in (1, 4, 6)] == ["Borge.", "Par.", "Ro."]


def test_nothing_familiar_is_the_base_model(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [*OTHERS, model.edits[0].prompt]
    inputs = prompts(model, queries)
    with never(model, monkeypatch):
        ways: list[dict[str, Any]] = [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}]
        for options in ways:
            torch.manual_seed(1)
            ours = model.generate(**inputs, queries=queries, max_new_tokens=8, **options)
            torch.manual_seed(1)
            assert torch.equal(ours, base_generate(model, inputs, max_new_tokens=8, **options))


def test_edits_can_be_switched_off(model: MegModel) -> None:
    queries = [edit.prompt for edit in model.edits]
    inputs = prompts(model, queries)
    unedited = base_generate(model, inputs, max_new_tokens=5, do_sample=False)

    def generated() -> Tensor:
        return cast(Tensor, model.generate(**inputs, max_new_tokens=5, do_sample=False))

    edited = generated()
    assert not torch.equal(edited, unedited)
    with model.disable_edits():
        assert torch.equal(generated(), unedited)
        with model.disable_edits():
            assert torch.equal(generated(), unedited)
        assert torch.equal(generated(), unedited)
    assert torch.equal(generated(), edited)
    with pytest.raises(ZeroDivisionError), model.disable_edits():
        raise ZeroDivisionError
    assert torch.equal(generated(), edited)


def test_an_error_in_generate_leaves_no_neuron_behind(model: MegModel) -> None:
    inputs = prompts(model, [model.edits[0].prompt])
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**inputs, max_new_tokens=-1)
    unedited = model.base(**inputs).logits
    with model.disable_edits():
        assert torch.equal(model.base(**inputs).logits, unedited)
    assert model._neuron.idle


def test_the_neuron_acts_from_the_last_prompt_token_on(model: MegModel) -> None:
    query = model.edits[0].prompt
    inputs = prompts(model, [query])
    length = inputs.input_ids.shape[1]
    edited = model.logits(inputs.input_ids, inputs.attention_mask, torch.tensor([length]), [query])
    unedited = model.base(**inputs).logits
    assert torch.equal(edited[:, : length - 1], unedited[:, : length - 1])
    assert not torch.equal(edited[:, length - 1], unedited[:, length - 1])


# ---------------------------------------------------------------------------------------------------
# Ways to generate


def test_beams(oracle: MegModel) -> None:
    queries = [OTHERS[0], oracle.edits[4].prompt, OTHERS[2], oracle.edits[7].rephrases[0]]
    inputs = prompts(oracle, queries)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    edited = oracle.generate(**inputs, queries=queries, **options)
    unedited = base_generate(oracle, inputs, **options)
    said = answers(oracle, inputs, edited)
    assert (said[2], said[6]) == ("Lu.", "Sp.")
    for row in (0, 1, 4, 5):
        assert torch.equal(edited[row], unedited[row])


def test_sampling(oracle: MegModel) -> None:
    """Each prompt's samples have its neuron: with a low temperature they all say the target."""
    queries = [oracle.edits[2].prompt, OTHERS[0], oracle.edits[5].prompt]
    inputs = prompts(oracle, queries)
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4, "temperature": 0.2}
    torch.manual_seed(0)
    first = oracle.generate(**inputs, queries=queries, **options)
    torch.manual_seed(0)
    again = oracle.generate(**inputs, queries=queries, **options)
    assert torch.equal(first, again)
    assert answers(oracle, inputs, first) == ["Jorge."] * 3 + ["Fr."] * 3 + ["Ma."] * 3


def test_keys_and_values_from_before(oracle: MegModel) -> None:
    """A cache of the first columns changes no answer, and the neuron still begins at the last prompt token."""
    queries = [oracle.edits[1].prompt, OTHERS[0]]
    inputs = prompts(oracle, queries)
    whole = oracle.generate(**inputs, queries=queries, max_new_tokens=4, do_sample=False)
    columns = inputs.input_ids.shape[1] - 5
    mask = inputs.attention_mask[:, :columns]
    cache = DynamicCache(config=oracle.base.config)
    oracle.base(
        input_ids=inputs.input_ids[:, :columns],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        **{cache_argument(oracle.base): cache},
    )
    cached = oracle.generate(**inputs, queries=queries, max_new_tokens=4, do_sample=False, past_key_values=cache)
    assert torch.equal(cached, whole)
    assert answers(oracle, inputs, cached) == ["Ital.", "Fr."]


@pytest.mark.parametrize("right_padded", [False, True])
def test_logits_agree_with_generate(oracle: MegModel, right_padded: bool) -> None:
    """Teacher forcing the greedy answer, it is the first choice at every position, wherever rows are padded."""
    queries = [oracle.edits[1].prompt, OTHERS[1], oracle.edits[6].rephrases[0], "Hi"]
    inputs = prompts(oracle, queries)
    width, new = inputs.input_ids.shape[1], 3
    options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    output = oracle.generate(**inputs, queries=queries, max_new_tokens=new, do_sample=False, **options)
    ids, start = output.sequences, torch.full((len(queries),), width)
    mask = torch.cat([inputs.attention_mask, torch.ones(len(queries), new, dtype=torch.long)], 1)
    if right_padded:
        length = mask.sum(1)
        ids = torch.stack([row.roll(int(n)) for row, n in zip(ids, length, strict=True)])
        start, mask = length - new, mask.flip(1)
    logits = oracle.logits(ids, mask, start, queries)
    steps = torch.stack(output.logits, 1)  # (rows, new, vocabulary)
    for row in range(len(queries)):
        forced = logits[row, start[row] - 1 : start[row] - 1 + new]
        # the same sums over blocks of another shape; logits are of size 20
        torch.testing.assert_close(forced, steps[row], rtol=1e-4, atol=1e-3)
        assert torch.equal(forced.argmax(-1), output.sequences[row, width:])


# ---------------------------------------------------------------------------------------------------
# Queries


def test_queries_are_found_in_the_prompts(oracle: MegModel) -> None:
    queries = [oracle.edits[0].prompt, OTHERS[0], oracle.edits[5].rephrases[0], "x"]
    inputs = prompts(oracle, queries)
    given = oracle.generate(**inputs, queries=queries, max_new_tokens=5, do_sample=False)
    found = oracle.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, given)
    assert [text[:3] for text in answers(oracle, inputs, found)] == ["Par", "Fr.", "Ma.", "Fr."]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_mask_that_is_not_given(oracle: MegModel, fitted: Fitted, monkeypatch: pytest.MonkeyPatch, pad: str) -> None:
    """Queries are found and other rows stay the base model's, also if padding is the token that ends a turn."""
    oracle.tokenizer = AutoTokenizer.from_pretrained(fitted.base, padding_side="left", pad_token=pad)
    queries = [oracle.edits[4].prompt, "Who wrote</s>Dune?", "x"]
    ids = prompts(oracle, queries).input_ids
    asked = queries_asked(oracle, monkeypatch)
    output = oracle.generate(ids, max_new_tokens=5, do_sample=False)
    assert asked == queries
    assert torch.equal(output[1:], base_generate(oracle, {"input_ids": ids}, max_new_tokens=5, do_sample=False)[1:])


def test_the_last_user_turn_is_read_with_those_before(oracle: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = oracle.edits[6]
    conversations = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who wrote Dune?"},
            {"role": "assistant", "content": "Herbert."},
            {"role": "user", "content": edit.prompt},
        ],
        [
            {"role": "user", "content": edit.prompt},
            {"role": "assistant", "content": "Fr."},
            {"role": "user", "content": "Are you sure?"},
        ],
    ]
    texts = [
        str(oracle.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        for turns in conversations
    ]
    asked = queries_asked(oracle, monkeypatch)
    inputs: Any = oracle.tokenizer(texts, return_tensors="pt", padding=True)
    output = oracle.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert asked == [
        f"user: Who wrote Dune?\nassistant: Herbert.\nuser: {edit.prompt}",
        f"user: {edit.prompt}\nassistant: Fr.\nuser: Are you sure?",
    ]
    assert torch.equal(output[1], base_generate(oracle, inputs, max_new_tokens=4, do_sample=False)[1])


def test_the_wrong_number_of_queries(model: MegModel) -> None:
    inputs = prompts(model, OTHERS)
    with pytest.raises(ValueError, match="3 queries were given for 4 rows"):
        model.generate(**inputs, queries=OTHERS[:3], max_new_tokens=2)
    with pytest.raises(ValueError, match="1 queries were given for 4 rows"):
        model.logits(inputs.input_ids, inputs.attention_mask, torch.full((4,), 9), ["one"])


# ---------------------------------------------------------------------------------------------------
# Loading and saving


def test_another_base_model(fitted: Fitted, base: Base) -> None:
    with pytest.raises(MegError, match=f"made for the base model {fitted.base} and does not fit"):
        MegModel(tiny_model("llama", seed=1), base[1], load_adapter(fitted.adapter))


def test_another_base_model_by_name(fitted: Fitted, base: Base, tmp_path: Path) -> None:
    tiny_model("llama", seed=1).save_pretrained(tmp_path)
    base[1].save_pretrained(tmp_path)
    with pytest.raises(MegError, match="does not fit the one given"):
        MegModel.from_pretrained(fitted.adapter, base=str(tmp_path))


def test_a_round_trip(fitted: Fitted, model: MegModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    loaded = MegModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    queries = [*OTHERS, *(edit.prompt for edit in model.edits)]
    inputs = prompts(model, queries)
    options: dict[str, Any] = {"queries": queries, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))
    assert loaded.route(queries) == model.route(queries)
    assert loaded.edits == fitted.edits.edits
    with pytest.raises(MegError, match="already holds an adapter"):
        model.save_pretrained(tmp_path / "saved")


def test_a_base_model_that_was_moved(fitted: Fitted, adapter_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(fitted.base, tmp_path / "moved")
    assert MegModel.from_pretrained(adapter_folder, base=str(moved)).answer([fitted.edits[0].prompt]) == ["Par."]


def test_push_to_the_hub(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.adapter), "push_to_hub", lambda self, name, **options: f"{name} {options}")
    assert model.push_to_hub("owner/name", private=True) == "owner/name {'private': True}"


def test_end_tokens(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_tokens(model.base, model.tokenizer) == {1}
    monkeypatch.setattr(model.base.generation_config, "eos_token_id", [5, 1])
    assert end_tokens(model.base, model.tokenizer) == {1, 5}
    monkeypatch.setattr(model.base.generation_config, "eos_token_id", None)
    assert end_tokens(model.base, model.tokenizer) == {1}
