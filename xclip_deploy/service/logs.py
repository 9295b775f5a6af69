"""Structured logs: one JSON object a line, with the id of the request that caused it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.security.headers import secure
from xclip_deploy.wire import API

REQUEST_ID = "X-Request-Id"
"""Header with the id of a request, which clients may choose."""
CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client went away before the answer."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods of HTTP that are known."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_LOG = logging.getLogger("xclip_deploy.service.requests")
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Return the id of the request that is being answered; empty outside of one."""
    return _request_id.get()


class JsonLines(logging.Formatter):
    """A formatter that writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Fields of ``extra={"fields": …}`` stand beside the message."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id():
            line["request_id"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all log messages of the process to ``stream`` as JSON; None is standard error.

    ``level``: lowest level that is written. Libraries are heard from ``warning`` on.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    lowest = getattr(logging, level.upper())
    root.setLevel(max(lowest, logging.WARNING))
    logging.getLogger("xclip_deploy").setLevel(lowest)


class RequestLog:
    """ASGI middleware: ids of requests, a line in the log for each, metrics, and headers.

    It is the outermost part, so that refusals are logged and carry the same headers.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        """Log requests to ``app``."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(REQUEST_ID)
        is_chosen = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        request_id = given[0] if is_chosen else uuid.uuid4().hex
        token = _request_id.set(request_id)
        status, sent, is_stream = CLIENT_GONE, 0, False

        async def noted(message: Message) -> None:
            nonlocal status, sent, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                is_stream = headers.get("content-type", "").startswith("text/event-stream")
                secure(headers, scope["path"])
            sent += len(message.get("body", b""))
            await send(message)

        start = time.perf_counter()
        self._metrics.running.inc()
        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except Exception:
            status = 500
            _LOG.exception("a response broke off")
            raise
        finally:
            self._metrics.running.dec()
            seconds = time.perf_counter() - start
            if not is_stream:  # it lasts as long as its reader likes
                self._metrics.stage("request").observe(seconds)
            self._note(scope, status, sent, seconds)
            _request_id.reset(token)

    def _note(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        route = _route_of(scope)
        # A method is the client's text; only known ones may become a label.
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        client = scope.get("client")
        fields = {
            "method": method,
            "path": scope["path"][:500],  # without the query, which is private
            "route": route,
            "status": status,
            "bytes": sent,
            "seconds": round(seconds, 6),
            "client": client[0] if client else "",
        }
        _LOG.info("request", extra={"fields": fields})


def _route_of(scope: Scope) -> str:
    """Return the template of the address that matched, so that labels stay few."""
    path: str = scope["path"]
    route = getattr(scope.get("route"), "path", None)
    if isinstance(route, str):
        # A route of an included router does not know the router's prefix.
        return API + route if path.startswith(API) and not route.startswith(API) else route
    if path == f"{API}/openapi.json":
        return path
    return "/static" if path.startswith("/static/") else "none"
