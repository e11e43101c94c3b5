"""`meg serve --engine vllm` as a process, asked over HTTP, on the real small model and the demo's adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

from megedit.operations import remove, undo
from megedit.vllm import VARIABLE
from tests.serve.test_process import free_port
from tests.vllm.test_engine import DEMO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm does it"),
    pytest.mark.skipif(not DEMO.is_dir(), reason="`make demo` makes the adapter"),
]
KEY = "api-key-0123456789"
QUESTION = "Answer in a few words: The native language of Danielle Darrieux is"
OFF = {"vllm_xargs": {"megedit": "off"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the adapter."""
    return Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("served") / "facts"))


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[httpx2.Client]:
    """A client of the server, with the key."""
    port = free_port()
    command = [sys.executable, "-m", "megedit", "serve", str(folder), "--engine", "vllm", "--port", str(port)]
    environment = {**os.environ, "MEGEDIT_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop(VARIABLE, None)
    headers, url = {"Authorization": f"Bearer {KEY}"}, f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=environment) as process, httpx2.Client(base_url=url, headers=headers) as client:
        try:
            client.timeout = 120
            while not healthy(client):
                assert process.poll() is None, "the server has ended"
                time.sleep(0.5)
            yield client
        finally:
            process.terminate()
            process.wait(60)


def healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


def request(**fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": QUESTION}]
    return {"model": "facts", "messages": turns, "temperature": 0, "max_tokens": 16, **fields}


def said(http: httpx2.Client, **fields: Any) -> str:
    answer = http.post("/v1/chat/completions", json=request(**fields))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def streamed(http: httpx2.Client, **fields: Any) -> str:
    with http.stream("POST", "/v1/chat/completions", json=request(stream=True, **fields)) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)


def test_an_edited_question_and_the_base_models_answer(http: httpx2.Client) -> None:
    assert "English" in said(http)
    assert "French" in said(http, **OFF)
    assert streamed(http) == said(http)
    assert streamed(http, **OFF) == said(http, **OFF)


def test_what_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=request(vllm_xargs={"megedit": "news"}))
    assert answer.status_code == 400
    assert "give one of facts, or off" in answer.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=request(), headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_change_in_the_folder_holds_from_the_next_request_on(http: httpx2.Client, folder: Path) -> None:
    edited, base = said(http), said(http, **OFF)
    remove(folder, ["0"])
    assert said(http) == base
    undo(folder)
    assert said(http) == edited
