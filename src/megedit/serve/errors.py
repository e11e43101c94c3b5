"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from megedit.adapter.sqlite import Busy
from megedit.errors import MegError
from megedit.operations.conflicts import Conflict, Contradiction
from megedit.operations.operations import UnknownEdit
from megedit.serve.engine import QueueFull, Stopping, Unreadable

RETRY_SECONDS = 2


class ApiError(Exception):
    """An answer other than success. code: short, for programs; param: the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **further: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": clean(message), "type": kind, "param": param, "code": code, **further}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def clean(text: str) -> str:
    """Text that can be sent: no halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def api_error(error: Exception) -> ApiError:
    """Any error as an answer. What is no fault of the client's and not foreseen is told without particulars."""
    retry = {"Retry-After": str(RETRY_SECONDS)}
    match error:
        case ApiError():
            return error
        case Contradiction():
            conflicts = [conflict_json(conflict) for conflict in error.conflicts]
            count = f"{len(conflicts)} of the new edits contradict others; nothing was changed."
            how = 'Say what is to become of them with "on_conflict": "replace", "skip" or "keep".'
            return ApiError(409, f"{count} {how}", "conflict", "edits", conflicts=conflicts)
        case UnknownEdit():
            return ApiError(404, str(error), "not_found")
        case Busy():
            message = "Another change of the adapter is being made; try again when it has finished."
            return ApiError(503, message, "busy", headers=retry)
        case QueueFull():
            return ApiError(429, str(error), "queue_full", headers=retry)
        case Stopping():
            return ApiError(503, str(error), "stopping", headers=retry)
        case Unreadable():
            return ApiError(503, str(error), "not_ready", headers=retry)
        case MegError():
            return ApiError(400, str(error), "invalid_request")
    return ApiError(500, "Something went wrong in the server; its log has more, under this request's id.", "internal")


def conflict_json(conflict: Conflict) -> dict[str, Any]:
    """A conflict with both of its sides."""
    sides = {"new": conflict.new, "old": conflict.old}
    return {
        "kind": conflict.kind,
        **{side: {"id": e.id, "prompt": e.prompt, "target": e.target} for side, e in sides.items()},
        "similarity": round(conflict.similarity, 4),
        "same_file": conflict.same_file,
    }


def handle_errors(app: FastAPI) -> None:
    """Give every error that is foreseen OpenAI's form; `Guard` does so with the others."""

    def known(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return ApiError(400, message, "invalid_request", clean(where) or None).response()

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(MegError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
