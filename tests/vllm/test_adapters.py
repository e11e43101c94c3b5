"""From a request's tokens to its neuron, by the adapter as it is in its folder; and the keys of cached blocks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.sqlite import FILE
from megedit.model import MegModel
from megedit.operations import remove, undo
from megedit.vllm.adapters import ServedAdapter, ServedAdapters
from megedit.vllm.batch import Neuron
from megedit.vllm.cache import with_block_key
from tests.conftest import Fitted
from tests.test_model import OTHERS

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def ids(model: MegModel, query: str) -> list[int]:
    return list(model.tokenizer(model.format(query)).input_ids)


def test_the_neuron_of_a_request(model: MegModel, fitted: Fitted) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    for edit in model.edits:
        prompt = ids(model, edit.prompt)
        neuron = served.neuron(prompt, None)
        assert neuron is not None and (neuron.layer, neuron.first) == (model.adapter.config.layer, len(prompt) - 1)
        found = model._finder.find([edit.prompt])[0].weights
        assert found is not None
        torch.testing.assert_close(torch.from_numpy(neuron.weights), found, rtol=1e-3, atol=1e-3)
        named = served.neuron(prompt, {"megedit": "one"})
        assert named is not None and named.digest == neuron.digest
        assert served.neuron(prompt, {"megedit": "off"}) is None
    for query in OTHERS:
        assert (served.neuron(ids(model, query), None) is None) == (not model.route(query).familiar)


def test_an_unknown_adapter_is_the_base_model(
    model: MegModel, fitted: Fitted, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    with caplog.at_level(logging.WARNING, "vllm.megedit"):
        assert served.neuron(ids(model, model.edits[0].prompt), {"megedit": "two"}) is None
    assert "answered by the base model: megedit is 'two'; give one of one" in caplog.text


def test_a_change_holds_from_the_next_request_on(model: MegModel, adapter_folder: Path) -> None:
    served = ServedAdapters({"one": str(adapter_folder)}, model.tokenizer)
    edit, prompt = model.edits[2], ids(model, model.edits[2].prompt)
    before = served.neuron(prompt, None)
    assert before is not None
    remove(adapter_folder, [edit.id])
    assert served.neuron(prompt, None) is None
    undo(adapter_folder)
    again = served.neuron(prompt, None)
    assert again is not None and again.digest == before.digest


def test_nothing_is_loaded_without_a_change(
    model: MegModel, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedAdapter("one", str(adapter_folder), model.tokenizer)
    monkeypatch.setattr("megedit.vllm.adapters.load_adapter", pytest.fail)
    served.refresh()


def test_a_damaged_adapter_stays_in_use(
    model: MegModel, adapter_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedAdapters({"one": str(adapter_folder)}, model.tokenizer)
    prompt = ids(model, model.edits[0].prompt)
    (adapter_folder / FILE).write_bytes(b"no database")
    with caplog.at_level(logging.ERROR, "vllm.megedit"):
        assert served.neuron(prompt, None) is not None and served.neuron(prompt, None) is not None
    assert len(caplog.records) == 1 and "one stays at revision 1" in caplog.text


def test_a_block_is_marked_from_the_first_token_on_which_the_neuron_acts(model: MegModel, fitted: Fitted) -> None:
    neuron = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer).neuron(
        ids(model, model.edits[0].prompt), None
    )
    assert isinstance(neuron, Neuron)
    own, mark = (("lora", "x"),), ("megedit", neuron.digest)
    assert with_block_key(None, None, 1000) is None and with_block_key(own, None, 1000) == own
    assert with_block_key(None, neuron, neuron.first) is None  # the block ends before that token
    assert with_block_key(None, neuron, neuron.first + 1) == (mark,)
    assert with_block_key(own, neuron, 1000) == (*own, mark)
