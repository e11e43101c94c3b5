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
from megedit.vllm.adapters import Asked, RouterThread, ServedAdapter, ServedAdapters
from megedit.vllm.batch import Neuron
from megedit.vllm.cache import with_block_key
from tests.conftest import Fitted
from tests.test_model import OTHERS

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def ids(model: MegModel, query: str) -> list[int]:
    return list(model.tokenizer(model.format(query)).input_ids)


def neuron(served: ServedAdapters, prompt: list[int]) -> Neuron | None:
    return served.neurons([Asked("one", prompt)])[0]


def test_the_neurons_of_requests(model: MegModel, fitted: Fitted) -> None:
    served = ServedAdapters({"one": str(fitted.adapter), "two": str(fitted.adapter)}, model.tokenizer)
    queries = [query for pair in zip([edit.prompt for edit in model.edits], OTHERS, strict=False) for query in pair]
    prompts = [ids(model, query) for query in queries]
    found = served.neurons([Asked("two" if row % 3 else "one", prompt) for row, prompt in enumerate(prompts)])
    wanted = model._finder.find(queries)
    assert any(each is not None for each in found) and len(found) == len(queries)
    for prompt, own, expected in zip(prompts, found, wanted, strict=True):
        assert (own is None) == (expected.weights is None)
        if own is not None and expected.weights is not None:
            assert (own.layer, own.first) == (model.adapter.config.layer, len(prompt) - 1)
            torch.testing.assert_close(torch.from_numpy(own.weights), expected.weights, rtol=1e-3, atol=1e-3)
            alone = neuron(served, prompt)
            assert alone is not None and alone.layer == own.layer


def test_the_choice_of_a_request(model: MegModel, fitted: Fitted, caplog: pytest.LogCaptureFixture) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    with caplog.at_level(logging.WARNING, "vllm.megedit"):
        assert served.choice(None) == served.choice({"megedit": "one"}) == "one"
        assert served.choice({"megedit": "off"}) is None and not caplog.records
        assert served.choice({"megedit": "two"}) is None
    assert "answered by the base model: megedit is 'two'; give one of one" in caplog.text


def test_the_thread_finds_what_was_asked(model: MegModel, fitted: Fitted) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    router, prompts = RouterThread(served), [ids(model, edit.prompt) for edit in model.edits]
    asked = [router.submit(Asked("one", prompt)) for prompt in prompts * 10]
    found = [each.result(timeout=60) for each in asked]
    assert len({each.digest for each in found[:8] if each}) == 8
    assert [each.first for each in found if each] == [len(prompt) - 1 for prompt in prompts] * 10


def test_a_failure_leaves_the_thread_alive(
    model: MegModel, fitted: Fitted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    router, prompt = RouterThread(served), ids(model, model.edits[0].prompt)
    with monkeypatch.context() as patch:
        patch.setattr(served, "neurons", lambda requests: 1 / 0)
        assert router.submit(Asked("one", prompt)).result(timeout=60) is None
    assert "their routing failed" in caplog.text
    assert router.submit(Asked("one", prompt)).result(timeout=60) is not None


def test_a_change_holds_from_the_next_request_on(model: MegModel, adapter_folder: Path) -> None:
    served = ServedAdapters({"one": str(adapter_folder)}, model.tokenizer)
    edit, prompt = model.edits[2], ids(model, model.edits[2].prompt)
    before = neuron(served, prompt)
    assert before is not None
    remove(adapter_folder, [edit.id])
    assert neuron(served, prompt) is None
    undo(adapter_folder)
    again = neuron(served, prompt)
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
        assert neuron(served, prompt) is not None and neuron(served, prompt) is not None
    assert len(caplog.records) == 1 and "one stays at revision 1" in caplog.text


def test_a_block_is_marked_from_the_first_token_on_which_the_neuron_acts(model: MegModel, fitted: Fitted) -> None:
    served = ServedAdapters({"one": str(fitted.adapter)}, model.tokenizer)
    marked = neuron(served, ids(model, model.edits[0].prompt))
    assert marked is not None
    own, mark = (("lora", "x"),), ("megedit", marked.digest)
    assert with_block_key(None, None, 1000) is None and with_block_key(own, None, 1000) == own
    assert with_block_key(None, marked, marked.first) is None  # the block ends before that token
    assert with_block_key(None, marked, marked.first + 1) == (mark,)
    assert with_block_key(own, marked, 1000) == (*own, mark)
