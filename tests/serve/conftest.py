"""A server in a thread of the tests, around a copy of the tiny adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.model import MegModel
from megedit.serve.run import Server
from megedit.serve.settings import ServeSettings
from tests.serve.running import running

API_KEY, EDIT_KEY = "api-key-0123456789", "edit-key-0123456789"
SETTINGS = ServeSettings(name="tiny", port=0, edit_key=EDIT_KEY, max_tokens=64)


@dataclass
class Live:
    """A running server. get, post and so on show the edit key."""

    url: str
    model: MegModel
    server: Server
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
    with ExitStack() as ends:

        def start(folder: Path | None = None, **options: Any) -> Live:
            model = MegModel(*base, load_adapter(folder or adapter_folder, dtype=torch.float32))
            ends.callback(model.detach)
            found = ends.enter_context(running(model, replace(SETTINGS, **options)))
            headers = {"Authorization": f"Bearer {EDIT_KEY}"}
            http = ends.enter_context(httpx2.Client(base_url=found.url, headers=headers, timeout=120))
            return Live(found.url, model, found.server, http)

        yield start


@pytest.fixture
def live(serve: Serve) -> Live:
    """A running server."""
    return serve()
