"""vLLM's own server, started for an adapter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megedit.adapter.folder import find_adapter, read_config
from megedit.lm.loading import base_folder
from megedit.vllm import VARIABLE

SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` is the same


def command(adapter: str | Path, base: str | None, name: str, host: str, port: int) -> list[str]:
    """The command that serves the base model of an adapter under a name."""
    model = base_folder(base or read_config(find_adapter(adapter)).base)
    where = ["--host", host, "--port", str(port)]
    return [sys.executable, "-m", SERVER, "--model", str(model), "--served-model-name", name, *where]


def serve(adapter: str | Path, base: str | None, name: str, host: str, port: int, api_key: str | None) -> None:
    """Become vLLM's server with the edits of an adapter."""
    started = command(adapter, base, name, host, port)
    environment = {**os.environ, VARIABLE: str(find_adapter(adapter))}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    os.execvpe(started[0], started, environment)
