"""vLLM's server as `meg serve --engine vllm` starts it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from megedit.vllm import VARIABLE, start
from tests.conftest import Fitted


@pytest.mark.parametrize("gpu", [False, True])
def test_the_command(fitted: Fitted, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    found = start.command(fitted.adapter, None, "facts", "127.0.0.1", 8000)
    options = dict(zip(found[3:11:2], found[4:11:2], strict=True))
    assert found[1:3] == ["-m", start.SERVER]
    assert options == {
        "--model": str(fitted.base),
        "--served-model-name": "facts",
        "--host": "127.0.0.1",
        "--port": "8000",
    }
    assert ("--enforce-eager" in found) is ("--dtype" in found) is not gpu


def test_the_environment(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def become(program: str, command: Sequence[str], environment: dict[str, str]) -> None:
        started.append(environment)

    monkeypatch.setattr(os, "execvpe", become)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    start.serve(fitted.adapter, None, "facts", "127.0.0.1", 8000, "a-key-of-somebody")
    assert {VARIABLE: str(fitted.adapter), "VLLM_API_KEY": "a-key-of-somebody", **start.SPACE}.items() <= started[
        0
    ].items()
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    start.serve(fitted.adapter, None, "facts", "127.0.0.1", 8000, None)
    assert started[1]["VLLM_CPU_KVCACHE_SPACE"] == "1"
