"""The application: routes, errors, the page and its files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from megedit.adapter.ledger import reading
from megedit.errors import MegError
from megedit.model import MegModel
from megedit.serve import answers, edits
from megedit.serve.engine import Engine
from megedit.serve.errors import ApiError, handle_errors
from megedit.serve.guard import HEADERS, Guard
from megedit.serve.jobs import Jobs
from megedit.serve.metrics import Metrics
from megedit.serve.prompts import PromptMaker
from megedit.serve.report import Report, read_report
from megedit.serve.services import Services, services
from megedit.serve.settings import ServeSettings
from megedit.serve.store import Store

PAGE = Path(__file__).parent / "page"
ABOUT = """\
An edited language model behind OpenAI's routes, and its edits beside them.

    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "facts", "messages": [{"role": "user", "content": "Which port does the billing service use?"}]}'

Keys go into the header `Authorization: Bearer KEY`.
"""
API_DOCS = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MegEdit API</title>
<link rel="stylesheet" href="/docs/files/swagger-ui.css"></head><body><div id="ui"></div>
<script src="/docs/files/swagger-ui-bundle.js"></script><script src="/page/docs.js"></script></body></html>"""
DOCS_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


def make_app(model: MegModel, settings: ServeSettings) -> FastAPI:
    """The application around an edited model. Its engine runs as long as the application's lifespan."""
    own = _services(model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own.engine.start()
        try:
            yield
        finally:
            own.engine.drain()
            await run_in_threadpool(own.engine.join)
            await run_in_threadpool(own.jobs.join)

    app = FastAPI(
        title="MegEdit", description=ABOUT, version=version("megedit"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.services = own
    app.add_middleware(Guard, settings=settings, metrics=own.metrics)
    handle_errors(app)
    for router in (edits.public, answers.routes, edits.reads, edits.changes):
        app.include_router(router)
    _add_health(app)
    _add_page(app, own.report)
    return app


def _services(model: MegModel, settings: ServeSettings) -> Services:
    store, jobs = Store(model), Jobs()
    engine = Engine(store, settings.batch, settings.queue)

    def counts() -> dict[str, int]:
        try:
            with reading(store.folder) as ledger:
                return {str(status): count for status, count in ledger.counts().items()}
        except MegError:  # which /ready tells
            return {}

    def levels() -> dict[str, tuple[str, float]]:
        return {
            "queue": ("Requests that wait for a place", engine.waiting),
            "running": ("Requests that are being answered", engine.running),
            "jobs": ("Changes that run in the background", jobs.running),
            "revision": ("Revision of the adapter that answers", store.revision),
        }

    return Services(
        settings, store, engine, jobs, Metrics(levels, counts), PromptMaker(model), read_report(settings.results)
    )


def _add_health(app: FastAPI) -> None:
    @app.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """Say that the process runs."""
        return {"status": "ok"}

    @app.get("/ready", tags=["server"])
    def ready(request: Request) -> JSONResponse:
        """Say if requests are answered."""
        own = services(request)
        if not own.engine.alive:
            return ApiError(503, "Requests are not answered.", "not_ready").response()
        try:
            with reading(own.store.folder):
                pass
        except MegError as error:
            return ApiError(503, str(error), "not_ready").response()
        return JSONResponse({"status": "ready", "revision": own.store.revision})

    @app.get("/metrics", tags=["server"])
    def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(services(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, report: Report | None) -> None:
    import swagger_ui_bundle

    files: Any = swagger_ui_bundle.swagger_ui_path
    app.mount("/docs/files", StaticFiles(directory=files), name="docs-files")
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    styles = " ".join(["style-src 'self'", *(report.styles if report else ())])  # its frame has the page's policy
    policy = HEADERS["Content-Security-Policy"].replace("style-src 'self'", styles)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": policy})

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(API_DOCS, headers={"Content-Security-Policy": DOCS_POLICY})
