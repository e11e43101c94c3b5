"""A server in a thread of the tests, around a copy of the tiny adapter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.model import MegModel
from megedit.serve.run import Server, make_server
from megedit.serve.settings import ServeSettings

API_KEY, EDIT_KEY = "api-key-0123456789", "edit-key-0123456789"
SETTINGS = ServeSettings(name="tiny", port=0, edit_key=EDIT_KEY, max_tokens=64)


@dataclass
class Live:
    """A running server. get, post and so on show the edit key."""

    url: str
    model: MegModel
    server: Server
    settings: ServeSettings
    http: httpx2.Client

    @property
    def folder(self) -> Path:
        return self.model.adapter.folder

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """A POST with a JSON body."""
        return self.http.post(path, json=body, **options)

    def ask(self, question: str, **fields: Any) -> dict[str, Any]:
        """The answer to a chat of one turn."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 8, **fields}
        answer = self.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def said(self, question: str, **fields: Any) -> str:
        """The text of that answer."""
        return str(self.ask(question, **fields)["choices"][0]["message"]["content"])


Serve = Callable[..., Live]


@pytest.fixture
def serve(adapter_folder: Path, base: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Iterator[Serve]:
    """Starts servers, each around the tiny adapter; options: of `ServeSettings`."""
    running: list[tuple[Live, threading.Thread]] = []

    def start(folder: Path | None = None, **options: Any) -> Live:
        settings = replace(SETTINGS, **options)
        model = MegModel(*base, load_adapter(folder or adapter_folder, dtype=torch.float32))
        server = make_server(model, settings)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {EDIT_KEY}"}, timeout=120)
        live = Live(url, model, server, settings, http)
        running.append((live, thread))
        return live

    yield start
    for live, thread in running:
        live.http.close()
        live.server.should_exit = True
        thread.join(60)
        live.model.detach()
        assert not thread.is_alive()


@pytest.fixture
def live(serve: Serve) -> Live:
    """A running server."""
    return serve()
