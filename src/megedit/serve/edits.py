"""The routes of the edits: read, added, changed, removed, undone, explained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from megedit.adapter.ledger import Changed, EditRecord, Status, reading
from megedit.edits import Edit, EditSet, chat_text, edits_of, read_edits
from megedit.edits.rows import Row
from megedit.errors import MegError
from megedit.explain import explain
from megedit.operations import Outcome, add, consolidate, remove, rollback, undo, update
from megedit.operations.adding import compare
from megedit.operations.conflicts import Choice
from megedit.operations.operations import find
from megedit.routes import Near, Route
from megedit.runtime.progress import Stages
from megedit.serve.errors import ApiError, api_error, clean, conflict_json
from megedit.serve.guard import Bearer, may_ask, may_edit, rights
from megedit.serve.jobs import Job, Watched
from megedit.serve.openai import Strict, Turn, example
from megedit.serve.services import Services, services

LONGEST = 10_000  # characters of a text of an edit
MOST_TEXTS = 100  # wordings, or aliases, of an edit

public = APIRouter(tags=["server"])
reads = APIRouter(dependencies=[Depends(may_ask)], tags=["edits"])
changes = APIRouter(dependencies=[Depends(may_edit)], tags=["edits"])

Text = Annotated[str, Field(min_length=1, max_length=LONGEST)]
Texts = Annotated[list[Text], Field(max_length=MOST_TEXTS)]
Number = Annotated[int, Query(ge=0, le=2**53)]


class NewEdit(Strict):
    """A fact: the answer to a question, or the end of a sentence."""

    prompt: Text
    target: Text
    id: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    subject: Text | None = None
    relation: Text | None = None
    wordings: Texts | None = None
    aliases: Texts | None = None


class Adding(Strict):
    """on_conflict: what becomes of the new edits that contradict others. background: answer at once, with a job."""

    edits: Annotated[list[NewEdit], Field(min_length=1)]
    on_conflict: Choice | None = None
    background: bool = False

    model_config = example(edits=[{"prompt": "Which port does the billing service use?", "target": "8443"}])


class Changing(Strict):
    """New parts of an edit; one that is not given stays as it is."""

    target: Text | None = None
    wordings: Texts | None = None
    aliases: Texts | None = None


class ToRevision(Strict):
    revision: Annotated[int, Field(ge=1, le=2**53)]


class Question(Strict):
    """A question, or a chat whose last turn is the user's."""

    question: Text | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=1000)] | None = None


# -- reading


@public.get("/v1/status")
def status(request: Request, bearer: Bearer) -> dict[str, Any]:
    """The adapter that is served, and what the key that is shown may do."""
    own, config = services(request), services(request).store.model.adapter.config
    asks, edits = rights(own.settings, bearer.credentials if bearer else None)
    found = {
        "adapter": own.settings.name,
        "base": config.base if asks else None,
        "version": request.app.version,
        "may_ask": asks,
        "may_edit": edits,
        "keys": {"api": own.settings.api_key is not None, "edit": own.settings.edit_key is not None},
    }
    if asks:
        found["report"] = own.report is not None
        with reading(own.store.folder) as ledger:
            found |= {"revision": ledger.revision, "counts": ledger.counts()}
    return found


@reads.get("/v1/edits")
def list_edits(
    request: Request,
    search: Annotated[str | None, Query(max_length=LONGEST)] = None,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after: Number = 0,
) -> dict[str, Any]:
    """Edits in the order in which they came; `next` is the `after` of the following page."""
    with reading(services(request).store.folder) as ledger:
        found = list(ledger.records(status=status, search=search, limit=limit + 1, after=after))
        revision, counts = ledger.revision, ledger.counts()
    more, page = len(found) > limit, found[:limit]
    return {
        "object": "list",
        "data": [record_json(record) for record in page],
        "has_more": more,
        "next": page[-1].number if more else None,
        "revision": revision,
        "counts": counts,
    }


@reads.get("/v1/edits/log")
def log(request: Request) -> dict[str, Any]:
    """The operations on the adapter, the last first."""
    with reading(services(request).store.folder) as ledger:
        return {"object": "list", "data": [asdict(operation) for operation in ledger.operations()[::-1]]}


@reads.get("/v1/edits/log/{revision}")
def log_of(request: Request, revision: int) -> dict[str, Any]:
    """The edits that a revision changed."""
    with reading(services(request).store.folder) as ledger:
        if not 1 <= revision <= ledger.revision:
            raise ApiError(404, f"There is no revision {revision}.", "not_found")
        return {"object": "list", "data": [changed_json(changed) for changed in ledger.changes(revision)]}


@reads.get("/v1/edits/{name:path}")
def one_edit(request: Request, name: str) -> dict[str, Any]:
    """The edit of that id."""
    with reading(services(request).store.folder) as ledger:
        return record_json(find(ledger, [name])[0])


@reads.get("/v1/jobs")
def list_jobs(request: Request) -> dict[str, Any]:
    """The jobs that are remembered, the oldest first."""
    return {"object": "list", "data": [job_json(found) for found in services(request).jobs.all()]}


@reads.get("/v1/jobs/{name}")
def job(request: Request, name: str) -> dict[str, Any]:
    """A job: how far it is, and what came of it."""
    found = services(request).jobs.get(name)
    if found is None:
        raise ApiError(404, "There is no job of that id.", "not_found")
    return job_json(found)


@reads.get("/v1/report")
def report(request: Request) -> dict[str, Any]:
    """The report of evaluations that the server was started with (`--report`): `html`, a page of its own."""
    found = services(request).report
    if found is None:
        raise ApiError(404, "The server was started without results of evaluations (--report).", "not_found")
    return {"html": found.html}


@reads.post("/v1/explain")
async def explained(request: Request, body: Question) -> dict[str, Any]:
    """Why a question is answered as it is: the edits near it with the verifier's scores, and both answers."""
    own = services(request)
    if (body.question is None) == (body.messages is None):
        raise ApiError(400, "Give either question or messages.", "invalid_request", "question")
    query = body.question or chat_text([turn.plain for turn in body.messages or []])
    if len(query) > LONGEST:
        raise ApiError(400, f"What is explained has at most {LONGEST} characters.", "invalid_request", "messages")
    found = await to_thread.run_sync(explain, own.store.model, query, limiter=own.explaining)
    return {
        "query": query,
        "route": route_json(found.route),
        "why": found.route.why,
        "nearest": [near_json(near) for near in found.nearest],
        "edited": asdict(found.edited),
        "base": asdict(found.base),
        "distance": found.distance,
    }


# -- changing


@changes.post("/v1/edits", responses={202: {"description": "A job"}, 409: {"description": "A contradiction"}})
def add_edits(request: Request, body: Adding) -> Any:
    """Add facts. When the answer has come they are in force; one that contradicts others is a 409 with both sides."""
    own, edits = services(request), _edit_set(services(request), body.edits)
    choice = body.on_conflict
    resolve = None if choice is None else lambda conflict: choice

    def work(stages: Stages) -> Outcome:
        model = own.store.model
        return own.store.change(lambda: add(own.store.folder, edits, resolve=resolve, stages=stages, model=model))

    return _done(own, "add", work, body.background)


@changes.post("/v1/edits/preview")
async def preview(request: Request, filename: Annotated[str, Query(min_length=1, max_length=255)]) -> dict[str, Any]:
    """Read a file of facts (the body), and say what adding it would meet; nothing is changed."""
    own, data = services(request), await request.body()
    return await to_thread.run_sync(_previewed, own, Path(filename).name, data)


@changes.patch("/v1/edits/{name:path}")
def change_edit(request: Request, name: str, body: Changing) -> Any:
    """Give an edit another target, other wordings or aliases."""

    def operation(own: Services, stages: Stages) -> Outcome:
        given = {"target": body.target, "wordings": body.wordings, "aliases": body.aliases}
        model = own.store.model
        return update(own.store.folder, name, stages=stages, model=model, **given)  # type: ignore[arg-type]

    return _changed(request, operation)


@changes.delete("/v1/edits/{name:path}")
def remove_edit(request: Request, name: str) -> Any:
    """Take an edit back: its questions get the base model's answers again."""
    return _changed(request, lambda own, stages: remove(own.store.folder, [name]))


@changes.post("/v1/edits/undo")
def undo_last(request: Request) -> Any:
    """Take the last operation back."""
    return _changed(request, lambda own, stages: undo(own.store.folder))


@changes.post("/v1/edits/rollback")
def roll_back(request: Request, body: ToRevision) -> Any:
    """Bring back the edits that were in force at a revision."""
    return _changed(request, lambda own, stages: rollback(own.store.folder, body.revision))


@changes.post("/v1/edits/consolidate", status_code=202)
def consolidate_edits(request: Request) -> Any:
    """Absorb the edits that were added since the fit; a job, which takes minutes."""
    own = services(request)

    def work(stages: Stages) -> Outcome:
        model = own.store.model
        return own.store.change(lambda: consolidate(own.store.folder, stages=stages, model=model))

    return _done(own, "consolidate", work, background=True)


def _changed(request: Request, operation: Callable[[Services, Stages], Outcome]) -> dict[str, Any]:
    own = services(request)
    return outcome_json(own.store.change(lambda: operation(own, Watched())))


def _done(own: Services, kind: str, work: Callable[[Stages], Outcome], background: bool) -> Any:
    """The outcome of work, or the job that does it."""
    if background:
        return JSONResponse(job_json(own.jobs.start(kind, work)), 202)
    return outcome_json(work(Watched()))


def _edit_set(own: Services, given: list[NewEdit]) -> EditSet:
    """New edits, checked as those of a file are. Raises MegError or ApiError."""
    if len(given) > own.settings.max_edits:
        most = own.settings.max_edits
        raise ApiError(413, f"{len(given)} edits; one request may bring {most}.", "too_many_edits", "edits")
    rows = [Row(f"edits, {number}", edit.model_dump(exclude_none=True)) for number, edit in enumerate(given, 1)]
    try:
        return edits_of(rows, "HTTP", "json", schema="plain")
    except MegError as error:  # which may name an option that files have
        raise MegError(str(error).partition(", or keep the first")[0] + ".") from None


def _previewed(own: Services, name: str, data: bytes) -> dict[str, Any]:
    """The content of a file of facts, beside the edits of the adapter."""
    if not data:
        raise MegError(f"{name}: the file is empty; it needs at least one record")
    suffix = "".join(Path(name).suffixes)[-20:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"facts{suffix if suffix.replace('.', '').isalnum() else ''}")
        path.write_bytes(data)
        try:
            edits = read_edits(path, on_conflict="first")
        except MegError as error:
            raise MegError(str(error).replace(str(path), clean(name))) from None
    found = compare(own.store.model.adapter, edits)
    return {
        "edits": [edit_json(edit) for edit in edits],
        "dropped": [line.replace(str(path), clean(name)) for line in edits.dropped_summary()],
        "known": [edit.id for edit in found.known],
        "conflicts": [conflict_json(conflict) for conflict in found.conflicts],
    }


# -- as JSON


def edit_json(edit: Edit) -> dict[str, Any]:
    """A fact."""
    texts = {"wordings": list(edit.wordings), "aliases": list(edit.aliases)}
    named = {name: getattr(edit, name) for name in ("id", "prompt", "target", "subject", "relation")}
    return {**named, **texts}


def record_json(record: EditRecord) -> dict[str, Any]:
    """An edit and what became of it."""
    state = {"status": record.status, "generated": record.generated, "lead": record.lead, "number": record.number}
    return {**edit_json(record.edit), **state}


def changed_json(changed: Changed) -> dict[str, Any]:
    """An edit's status before and after."""
    return {"edit": record_json(changed.record), "before": changed.before, "after": changed.after}


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome of an operation."""
    failed = [
        {"id": e.id, "prompt": e.prompt, "target": e.target, "reason": outcome.reasons.get(e.id)}
        for e in outcome.failed
    ]
    return {
        "revision": outcome.revision,
        "changes": [changed_json(changed) for changed in outcome.changes],
        "skipped": [edit_json(edit) for edit in outcome.skipped],
        "failed": failed,
        "result": outcome.result,
    }


def job_json(job: Job) -> dict[str, Any]:
    """A job."""
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "stage": job.stages.name,
        "done": job.stages.done,
        "total": job.stages.total,
        "result": None if job.result is None else outcome_json(job.result),
        "error": None if job.error is None else api_error(job.error).body["error"],
    }


def route_json(route: Route) -> dict[str, Any]:
    """The router's view of a question."""
    return {name: getattr(route, name) for name in ("familiar", "by", "score", "threshold", "entropy", "neuron")}


def near_json(near: Near) -> dict[str, Any]:
    """An edit near a question."""
    edit = near.edit
    return {
        "edit": {"id": edit.id, "prompt": edit.prompt, "target": edit.target, "subject": edit.subject},
        "similarity": near.similarity,
        "score": near.score,
    }
