"""Calls as people make them: one text, no rows, padding on the right, other names of arguments, wrong ones."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.lm.structure import cache_argument
from megedit.model import SPARE_TOKENS, MegModel
from tests.conftest import TOWNS, Fitted
from tests.test_model import OTHERS, answers, base_generate, never, prompts
from tests.tiny import CHATML, tiny_tokenizer

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Warnings = Callable[[], list[str]]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Warnings:
    """The warnings that megedit and transformers have logged by the time of the call."""
    for name in ("megedit", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.get_records("call")]


# ---------------------------------------------------------------------------------------------------
# No rows, one row


def test_no_rows(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(vectors: Tensor) -> Tensor:
        raise AssertionError("nothing is to be sampled")

    monkeypatch.setattr(model.adapter.generator, "sample", sample)
    assert model.answer([]) == [] and model.greedy([]) == [] and model.route([]) == []
    rows, weights = model.neurons([])
    assert len(rows) == len(weights) == 0 and model.routes == []
    inputs = model.prompts([])
    assert inputs["input_ids"].shape == (0, 0)
    ids = torch.zeros(0, 7, dtype=torch.long)
    assert model.generate(ids, max_new_tokens=3).shape == (0, 7)
    assert model.generate(ids, return_dict_in_generate=True).sequences.shape == (0, 7)
    assert model.adapter.router.route([]) == []
    with never(model, monkeypatch):  # a batch without any familiar row: nothing is sampled either
        assert model.answer(["Hello"]) == ["Fr."]


def test_sampling_for_no_queries(model: MegModel) -> None:
    assert model.adapter.generator.sample(torch.zeros(0, 32)).shape == (0, model.backbone.weight_size)


def test_one_text(model: MegModel) -> None:
    prompt = model.edits[0].prompt
    assert model.answer(prompt) == "Par."
    assert model.answer([prompt]) == ["Par."]


# ---------------------------------------------------------------------------------------------------
# Kinds of arguments


def test_any_iterable_of_texts(model: MegModel) -> None:
    edits = model.edits[:3]
    said = ["Par.", "Ital.", "Jorge."]
    assert model.answer(edit.prompt for edit in edits) == said
    assert model.answer({edit.prompt: 0 for edit in edits}.keys()) == said
    assert [route.edit for route in model.route(edit.prompt for edit in edits)] == list(edits)
    inputs = prompts(model, [edit.prompt for edit in edits])
    output = model.generate(**inputs, queries=(edit.prompt for edit in edits), max_new_tokens=5, do_sample=False)
    assert answers(model, inputs, output) == said


def test_queries_that_are_no_texts(model: MegModel) -> None:
    for wrong, message in ((None, "not NoneType"), (7, "not int"), ([None], "one of them is NoneType")):
        for call in (model.answer, model.route, model.neurons, model.prompts):
            with pytest.raises(TypeError, match=message):
                call(cast(Any, wrong))
    inputs = prompts(model, ["Hello", "x"])
    with pytest.raises(TypeError, match="a list of texts, one for each row, not one text"):
        model.generate(**inputs, queries="Hello")


def test_prompts_that_are_no_token_ids(model: MegModel) -> None:
    for wrong, message in (("Hello", "not str"), ([[1, 2]], "not list"), (None, "not NoneType")):
        with pytest.raises(TypeError, match=f"{message}; answer.. takes plain questions"):
            model.generate(cast(Any, wrong))
    with pytest.raises(TypeError, match=r"not a tensor of shape \(3,\)"):
        model.generate(torch.tensor([4, 5, 6]))
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(torch.zeros(2, 0, dtype=torch.long))
    ids = prompts(model, ["Hello"]).input_ids
    with pytest.raises(TypeError, match="another name of input_ids"):
        model.generate(ids, inputs=ids)


def test_inputs_is_another_name(model: MegModel) -> None:
    inputs = prompts(model, [model.edits[0].prompt])
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(inputs=inputs.input_ids, **options), model.generate(**inputs, **options))


# ---------------------------------------------------------------------------------------------------
# Padding on the right


@pytest.mark.parametrize("with_mask", [True, False])
def test_padding_on_the_right(model: MegModel, with_mask: bool) -> None:
    queries = [model.edits[0].prompt, "x", model.edits[5].rephrases[0], OTHERS[1]]
    left = prompts(model, queries)
    right: Any = model.tokenizer(
        [model.format(query) for query in queries], return_tensors="pt", padding=True, padding_side="right"
    )
    assert not torch.equal(left.input_ids, right.input_ids)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    mask = right.attention_mask if with_mask else None
    assert torch.equal(model.generate(right.input_ids, mask, **options), model.generate(**left, **options))
    with model.disable_edits():
        assert torch.equal(model.generate(right.input_ids, mask, **options), base_generate(model, left, **options))


def test_padding_on_the_right_behind_a_cache(model: MegModel) -> None:
    inputs = model.prompts(["x", model.edits[0].prompt])
    inputs["attention_mask"][0, -1] = 0
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(**inputs)


# ---------------------------------------------------------------------------------------------------
# Length of answers


def test_a_cut_answer_is_marked(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megedit.model.ANSWER_TOKENS", 1)
    with model.disable_edits():
        assert model.answer("Hello") == "Fr …"
        assert model.answer("Hello", max_new_tokens=1) == "Fr"  # a limit of one's own is no news
        assert [found.cut for found in model.greedy(["Hello"])] == [True]
        assert [found.cut for found in model.greedy(["Hello"], 5)] == [False]


def test_the_limit_follows_the_target(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may be as long as the target of the edit that is used, whatever the limit for others is."""
    monkeypatch.setattr("megedit.model.ANSWER_TOKENS", 1)
    assert model.answer([model.edits[0].prompt]) == ["Par."]
    limits: list[int] = []

    def generate(*args: Any, max_new_tokens: int, **options: Any) -> Any:
        limits.append(max_new_tokens)
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "generate", generate)
    edit = model.edits[0]
    length = len(model.tokenizer(model.adapter.config.template.answer(edit.target)).input_ids)
    with pytest.raises(KeyboardInterrupt):
        model.greedy([edit.prompt, "Hello"])
    with model.disable_edits(), pytest.raises(KeyboardInterrupt):
        model.greedy([edit.prompt, "Hello"])
    assert limits == [length + SPARE_TOKENS, 1]


def test_probabilities(model: MegModel) -> None:
    queries = [model.edits[1].prompt, "Hello"]
    found = model.greedy(queries, scores=True)
    assert found[0].text == "Ital." and not found[0].cut
    for answer, query in zip(found, queries, strict=True):
        inputs = prompts(model, [query])
        ids = torch.cat([inputs.input_ids, torch.tensor([answer.tokens])], 1)
        start = torch.tensor([inputs.input_ids.shape[1]])
        logits = model.logits(ids, torch.ones_like(ids), start, [query])[0, int(start) - 1 : -1]
        forced = logits.softmax(-1)[range(len(answer.tokens)), answer.tokens]
        # the same sums over blocks of another shape
        torch.testing.assert_close(torch.tensor(answer.probabilities), forced, rtol=1e-3, atol=1e-4)
    assert model.greedy(queries)[0].probabilities == ()


# ---------------------------------------------------------------------------------------------------
# Warnings of other libraries


def test_a_generation_config(model: MegModel, warnings: Warnings) -> None:
    inputs = prompts(model, [model.edits[0].prompt, "x"])
    config = GenerationConfig(max_new_tokens=5, do_sample=False)
    output = model.generate(**inputs, generation_config=config)
    assert torch.equal(output, model.generate(**inputs, max_new_tokens=5, do_sample=False))
    assert config.pad_token_id is None
    assert not warnings()


def test_greedy_decoding_of_a_model_that_samples_by_itself(
    model: MegModel, monkeypatch: pytest.MonkeyPatch, warnings: Warnings
) -> None:
    expected = model.answer([edit.prompt for edit in model.edits])
    settings = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.3, max_length=64, eos_token_id=1
    )
    monkeypatch.setattr(model.base, "generation_config", settings)
    assert model.answer([edit.prompt for edit in model.edits]) == expected
    assert not warnings()


# ---------------------------------------------------------------------------------------------------
# Like a Hugging Face model


def test_properties(model: MegModel) -> None:
    assert model.config is model.base.config and model.generation_config is model.base.generation_config
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.eval() is model and not model.training
    assert model.can_generate()


@pytest.fixture
def own(fitted: Fitted) -> Iterator[MegModel]:
    """An edited model with a base model of its own, which a test may change."""
    yield MegModel.from_pretrained(fitted.adapter, torch_dtype="float32", device_map="cpu")


def test_number_formats(own: MegModel) -> None:
    prompts = [edit.prompt for edit in own.edits]
    expected = own.answer(prompts)
    own._finder.forget()
    assert own.bfloat16() is own and own.dtype == torch.bfloat16
    assert own.answer(prompts) == expected
    assert own.half().dtype == torch.float16
    assert own.to(dtype=torch.float32).to("cpu").float().cpu().dtype == torch.float32


def test_names_of_number_formats_and_devices(fitted: Fitted) -> None:
    loaded = MegModel.from_pretrained(fitted.adapter, dtype="bfloat16", device_map={"": "cpu"})
    assert loaded.dtype == torch.bfloat16 and loaded.device.type == "cpu"
    with pytest.raises(MegError, match="'float17' is not a number format; choose bfloat16"):
        MegModel.from_pretrained(fitted.adapter, dtype="float17")
    with pytest.raises(MegError, match="A device map of several parts cannot be given here"):
        MegModel.from_pretrained(fitted.adapter, device_map={"model.embed_tokens": 0, "lm_head": "cpu"})


def test_a_forward_pass(model: MegModel) -> None:
    """The logits of the last prompt token are those from which `generate` takes the first token of the answer."""
    queries = [model.edits[0].prompt, "x", model.edits[5].prompt, OTHERS[0]]
    inputs = prompts(model, queries)
    first = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert torch.equal(model(**inputs).logits[:, -1].argmax(-1), first)
    right: Any = model.tokenizer(
        [model.format(query) for query in queries], return_tensors="pt", padding=True, padding_side="right"
    )
    ends = right.attention_mask.sum(1) - 1
    assert torch.equal(model(**right).logits[range(4), ends].argmax(-1), first)
    with model.disable_edits():
        alone = {name: tensor[2:3] for name, tensor in inputs.items()}
        keep = alone["attention_mask"][0].bool()
        ids = alone["input_ids"][:, keep]
        assert torch.equal(model(input_ids=ids).logits, model.base(input_ids=ids).logits)


def test_decoding_by_hand(model: MegModel) -> None:
    """A loop of one's own over forward passes with a cache gives the answers of `generate`."""
    inputs = prompts(model, [edit.prompt for edit in model.edits[:4]] + OTHERS)
    expected = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    ids, mask, cache = inputs.input_ids, inputs.attention_mask, None
    said = ids
    for _ in range(3):
        output = model(ids, mask, past_key_values=cache, use_cache=True)
        cache, ids = getattr(output, cache_argument(model.base)), output.logits[:, -1:].argmax(-1)
        said, mask = torch.cat([said, ids], 1), torch.cat([mask, torch.ones_like(ids)], 1)
    width = inputs.input_ids.shape[1]
    assert torch.equal(said[:, width : width + 2], expected[:, width : width + 2])  # `min_new_tokens` forbids the end


def test_a_cache_of_another_origin(model: MegModel) -> None:
    inputs, cache = prompts(model, [model.edits[0].prompt]), DynamicCache(config=model.base.config)
    whole = model(**inputs).logits[:, -1]
    model.base(input_ids=inputs.input_ids[:, :-1], **{cache_argument(model.base): cache})
    with pytest.raises(ValueError, match="queries must be given"):
        model(inputs.input_ids[:, -1:], past_key_values=copy.deepcopy(cache))
    last = model(inputs.input_ids[:, -1:], past_key_values=cache, queries=[model.edits[0].prompt]).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-3)  # the same sums over blocks of another shape


def test_a_pipeline(model: MegModel, warnings: Warnings) -> None:
    ask = cast(Any, pipeline)("text-generation", model=model, tokenizer=model.tokenizer)
    texts = [model.format(edit.prompt) for edit in model.edits]
    said = ask(texts, max_new_tokens=5, do_sample=False, return_full_text=False, batch_size=3)
    assert [answer[0]["generated_text"] for answer in said] == [f"{town}." for town in TOWNS]
    assert not [warning for warning in warnings() if "not supported" in warning]


def test_no_pickling(model: MegModel, tmp_path: Path) -> None:
    for copied in (pickle.dumps, copy.deepcopy, lambda model: torch.save(model, tmp_path / "model.pt")):
        with pytest.raises(TypeError, match=r"is not pickled or copied.*from_pretrained"):
            copied(model)


def test_detach(fitted: Fitted, base: Base) -> None:
    inputs = base[1](["Hello"], return_tensors="pt")
    layer = base[0].get_decoder().layers
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in layer.modules()]
    model = MegModel(*base, load_adapter(fitted.adapter))
    prompt = model.edits[0].prompt
    assert model.answer(prompt) == "Par."
    assert model.detach() is base[0]
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in layer.modules()] == hooks
    with pytest.raises(RuntimeError, match="was detached"):
        model.answer(prompt)
    with pytest.raises(RuntimeError, match="was detached"):
        model(**inputs)
    with model.disable_edits():
        assert model.answer(prompt) == "Fr."
    assert model.route(prompt).familiar


# ---------------------------------------------------------------------------------------------------
# Prompts that are not in the adapter's template


OTHER_FORMS = ("{}", "Q: {}\nA:", "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_another_template(model: MegModel, form: str, warnings: Warnings) -> None:
    queries = [edit.prompt for edit in model.edits[:2]]
    inputs: Any = model.tokenizer([form.format(query) for query in queries], return_tensors="pt", padding=True)
    first: dict[str, Any] = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    (unedited,) = base_generate(model, inputs, **first).logits

    def generated(**options: Any) -> Tensor:
        (logits,) = model.generate(**inputs, queries=queries, **first, **options).logits
        return cast(Tensor, logits)

    edited = generated()
    assert not torch.isclose(edited, unedited).all(-1).any()
    assert [route.neuron is not None for route in model.routes] == [True, True]
    assert torch.equal(generated(on_other_template="base"), unedited)
    assert [route.neuron for route in model.routes] == [None, None]
    model.on_other_template = "base"
    assert torch.equal(generated(), unedited)
    assert torch.equal(generated(on_other_template="edit"), edited)
    (warning,) = warnings()
    assert "not in the adapter's template, '<|im_start|>system" in warning


def test_the_template_itself(model: MegModel, warnings: Warnings) -> None:
    """A prompt of the template or of the model's chat, alone or behind other turns, draws no warning."""
    model.on_other_template = "base"
    queries = [edit.prompt for edit in model.edits]
    assert model.answer(queries) == [f"{town}." for town in TOWNS]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": queries[0]}]
    chat = str(model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    for text in (model.format(queries[0]), model.format("Hello") + "Fr.<|im_end|>\n" + model.format(queries[0]), chat):
        inputs: Any = model.tokenizer([text], return_tensors="pt")
        model.generate(**inputs, max_new_tokens=2)
        (route,) = model.routes
        assert route.query.endswith(queries[0]) and route.neuron is not None
    assert not warnings()


def test_an_unfamiliar_query_in_another_template(
    model: MegModel, monkeypatch: pytest.MonkeyPatch, warnings: Warnings
) -> None:
    inputs: Any = model.tokenizer(["It rained all day."], return_tensors="pt")
    with never(model, monkeypatch):
        model.generate(**inputs, max_new_tokens=2)
    assert not warnings()


def test_a_begin_of_text_is_no_part_of_the_query(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from megedit.lm.prompts import Prompts
    from megedit.lm.template import Template

    tokenizer = tiny_tokenizer(CHATML, add_bos=True)
    raw = Prompts(tokenizer, Template("{query}"))
    inputs: Any = tokenizer(["Who wrote Dune?", "x"], return_tensors="pt", padding=True)
    texts = raw.texts(inputs.input_ids, inputs.attention_mask)
    assert [raw.query_of(text) for text in texts] == ["Who wrote Dune?", "x"]
