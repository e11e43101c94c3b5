"""What is refused before the engine starts, and what the workers are told."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from megedit.adapter.folder import read_config
from megedit.errors import MegError
from megedit.vllm import VARIABLE
from megedit.vllm.plan import PLAN, checkpoint_fingerprint, layers_of, make_plan
from tests.conftest import Fitted

CODE = "import sys; from megedit.vllm import register; register(); print('vllm' in sys.modules, 'torch' in sys.modules)"


@pytest.fixture
def config(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is asked of vLLM's configuration, for the shared adapter and its base model."""
    monkeypatch.setenv(VARIABLE, str(fitted.adapter))
    text = AutoConfig.from_pretrained(fitted.base)
    return SimpleNamespace(
        additional_config={},
        speculative_config=None,
        kv_transfer_config=None,
        parallel_config=SimpleNamespace(use_ubatching=False, prefill_context_parallel_size=1),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(
            runner_type="generate",
            model=str(fitted.base),
            hf_text_config=text,
            get_hidden_size=lambda: text.hidden_size,
        ),
    )


def test_the_plan(config: Any, fitted: Fitted, caplog: pytest.LogCaptureFixture) -> None:
    assert layers_of(config) == []
    with caplog.at_level(logging.WARNING):
        make_plan(config)
        make_plan(config)
    assert not caplog.records
    assert layers_of(config) == [read_config(fitted.adapter).layer]
    assert config.additional_config[PLAN]["activation"] == "silu"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("speculative_config", object(), "speculative decoding"),
        ("kv_transfer_config", object(), "kv_transfer_config"),
        ("parallel_config", SimpleNamespace(use_ubatching=True, prefill_context_parallel_size=1), "dual batch"),
        ("parallel_config", SimpleNamespace(use_ubatching=False, prefill_context_parallel_size=2), "prefill context"),
        ("cache_config", SimpleNamespace(kv_sharing_fast_prefill=True), "kv_sharing_fast_prefill"),
        ("model_config", SimpleNamespace(runner_type="pooling"), "not asked to generate text"),
        ("additional_config", object(), "additional_config"),
    ],
)
def test_what_would_not_be_right_is_refused(config: Any, part: str, value: Any, message: str) -> None:
    setattr(config, part, value)
    with pytest.raises(MegError, match=message):
        make_plan(config)


def test_an_adapter_of_another_model_is_refused(config: Any) -> None:
    config.model_config.get_hidden_size = lambda: 64
    with pytest.raises(MegError, match=r"does not fit .* \(hidden size 64, 4 layers\)"):
        make_plan(config)


def test_other_weights_of_the_same_size_are_noticed(
    config: Any, fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint_fingerprint(fitted.base) == read_config(fitted.adapter).base_fingerprint
    config.model_config.model = str(tmp_path)
    with caplog.at_level(logging.WARNING, "vllm.megedit"):
        make_plan(config)
    assert "could not be recognised" in caplog.text


@pytest.mark.parametrize("value", [None, "", " "])
def test_without_the_variable_the_plugin_does_nothing(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert subprocess.check_output([sys.executable, "-c", CODE], text=True).split() == ["False", "False"]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from megedit.vllm.hooks import install

    with pytest.raises(MegError, match=r"pip install 'megedit\[vllm\]'"):
        install()
