"""vLLM's own server, started for an adapter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from megedit.adapter.folder import find_adapter, read_config
from megedit.lm.loading import base_folder
from megedit.runtime.device import default_dtype
from megedit.vllm import VARIABLE

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` is the same
SPACE = {"VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB for keys and values on a processor, where vLLM wants 92 % of the memory


def command(adapter: str | Path, base: str | None, name: str, host: str, port: int) -> list[str]:
    """The command that serves the base model of an adapter under a name."""
    model = base_folder(base or read_config(find_adapter(adapter)).base)
    options = ["--model", str(model), "--served-model-name", name, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", SERVER, *options, *_on_a_processor()]


def _on_a_processor() -> list[str]:
    """Options that vLLM needs on a processor; none where there is a GPU.

    It would compile the model for minutes at each start, since there it cannot read again what it has compiled, and
    compute in bfloat16 where that is emulated.
    """
    if torch.accelerator.is_available():
        return []
    return ["--enforce-eager", "--dtype", str(default_dtype("cpu")).removeprefix("torch.")]


def serve(adapter: str | Path, base: str | None, name: str, host: str, port: int, api_key: str | None) -> None:
    """Become vLLM's server with the edits of an adapter."""
    started = command(adapter, base, name, host, port)
    environment = {**SPACE, **os.environ, VARIABLE: str(find_adapter(adapter))}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    os.execvpe(started[0], started, environment)
