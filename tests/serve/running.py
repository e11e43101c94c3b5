"""A server in a thread of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from megedit.model import MegModel
from megedit.serve.run import Server, make_server
from megedit.serve.settings import ServeSettings


@dataclass
class Running:
    """A server that runs, and the model that it serves."""

    url: str
    model: MegModel
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive(), "the server has not ended"


@contextmanager
def running(model: MegModel, settings: ServeSettings) -> Iterator[Running]:
    """Serve a model in a thread, at a port that is free where the settings say 0."""
    server = make_server(model, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = Running(f"http://127.0.0.1:{port}", model, server, thread)
    try:
        yield found
    finally:
        found.stop()
