"""The process of a server: its log, and how it is stopped."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType

import uvicorn

from megedit.model import MegModel
from megedit.serve.app import make_app
from megedit.serve.services import Services
from megedit.serve.settings import ServeSettings

GRACE = 600  # seconds that answers and jobs under way have when the server is stopped
TURN = 1e-4  # seconds; a step has hundreds of operations, and each may wait so long for a thread that reads edits
CONNECTIONS = 2048  # more are refused
FIELDS = ("request", "method", "route", "status", "seconds", "queries", "job", "kind", "error")


class JsonLines(logging.Formatter):
    """A line of JSON for each event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of an event."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name in FIELDS if (value := getattr(record, name, None)) is not None},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Server(uvicorn.Server):
    """Uvicorn, which on a signal refuses what waits, and finishes what runs."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal stops at once."""
        # a thread, since this one may hold the lock that is asked for
        threading.Thread(target=self._services.engine.drain, daemon=True).start()
        super().handle_exit(sig, frame)


def serve(model: MegModel, settings: ServeSettings) -> None:
    """Serve until a signal comes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers = [handler]
    logging.getLogger("megedit").setLevel(logging.INFO)
    sys.setswitchinterval(TURN)
    gc.collect()
    gc.freeze()  # or the collector looks through all edits now and then, and nobody is answered meanwhile
    with suppress(KeyboardInterrupt):  # raised again once all is finished
        make_server(model, settings).run()


def make_server(model: MegModel, settings: ServeSettings) -> Server:
    """The server, not started yet."""
    app = make_app(model, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, app.state.services)
