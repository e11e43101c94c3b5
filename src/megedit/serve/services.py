"""The parts of a running server, as its routes find them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from fastapi import Request

from megedit.serve.engine import Engine
from megedit.serve.jobs import Jobs
from megedit.serve.metrics import Metrics
from megedit.serve.prompts import PromptMaker
from megedit.serve.report import Report
from megedit.serve.settings import ServeSettings
from megedit.serve.store import Store


@dataclass
class Services:
    """The parts that all routes of one server share. explaining: explanations that are worked on at a time."""

    settings: ServeSettings
    store: Store
    engine: Engine
    jobs: Jobs
    metrics: Metrics
    prompts: PromptMaker
    report: Report | None
    explaining: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    started: int = field(default_factory=lambda: int(time.time()))


def services(request: Request) -> Services:
    """The parts of the server that a request has come to."""
    found: Services = request.app.state.services
    return found
