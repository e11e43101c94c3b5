"""The gate that every request passes: its id, host and size; keys; headers of the answer; a line in the log."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megedit.serve.errors import ApiError, api_error
from megedit.serve.metrics import Metrics
from megedit.serve.services import services
from megedit.serve.settings import ServeSettings, is_loopback

logger = logging.getLogger("megedit.serve")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Guard:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = name
        status = 0  # of the answer, once it has begun

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                for header, value in HEADERS.items():
                    answer.setdefault(header, value)
                answer["X-Request-Id"] = name
            await send(message)

        try:
            self._check_host(headers)
            receive = await self._whole(scope["method"], headers, receive)
            await self._app(scope, receive, tagged)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("a request failed", extra={"request": name})
            if status:
                raise  # the connection is closed in the middle of the answer
            await api_error(error).response()(scope, receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            fields = {"request": name, "method": scope["method"], "route": route, "status": status}
            logger.info("request", extra={**fields, "seconds": round(seconds, 4)})

    def _check_host(self, headers: Headers) -> None:
        """Refuse a request that a page of another site has made through a name of its own for this machine."""
        if self._settings.api_key is not None:
            return
        name = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if not (is_loopback(name) or name in self._settings.hosts):
            raise ApiError(403, "This server is asked by another name than its own (the Host header).", "wrong_host")

    async def _whole(self, method: str, headers: Headers, receive: Receive) -> Receive:
        """Read the body of a request, so large and so long as is allowed; returned is what gives it once more."""
        if method in ("GET", "HEAD", "OPTIONS"):
            return receive
        limit = self._settings.max_body
        close = {"Connection": "close"}  # the rest of the body is not read
        too_large = ApiError(413, f"The request has more than {limit} bytes.", "too_large", headers=close)
        if (length := headers.get("content-length", "")).isdecimal() and int(length[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "The request ended before all of it had come.", "incomplete")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(408, "The request did not arrive in time.", "too_slow", headers=close) from None
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return again


Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="The API key to ask and read, the edit key to change")),
]


def rights(settings: ServeSettings, key: str | None) -> tuple[bool, bool]:
    """(may ask, may change) of whoever shows this key."""
    given = (key or "").encode("utf-8", "replace")
    asks, edits = (
        expected is not None and hmac.compare_digest(given, expected.encode())
        for expected in (settings.api_key, settings.edit_key)
    )
    return asks or edits or settings.api_key is None, edits


def may_ask(request: Request, bearer: Bearer) -> None:
    """Raise ApiError unless the request may ask and read."""
    if not rights(services(request).settings, bearer.credentials if bearer else None)[0]:
        raise unauthorised("the API key")


def may_edit(request: Request, bearer: Bearer) -> None:
    """Raise ApiError unless the request may change edits."""
    settings = services(request).settings
    if settings.edit_key is None:
        message = "Nothing can be changed here: the server was started without an edit key (--edit-key)."
        raise ApiError(403, message, "editing_disabled")
    if not rights(settings, bearer.credentials if bearer else None)[1]:
        raise unauthorised("the edit key")


def unauthorised(which: str) -> ApiError:
    """The error of a request without the right key."""
    message = f"Give {which}: Authorization: Bearer KEY."
    return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
