"""The gate that every request passes before a route sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xclip_deploy.service.answers import ErrorAnswers
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.health import Health, Running
from xclip_deploy.service.security.bodies import LimitedBody, body_limits, check_length
from xclip_deploy.service.security.rates import RateLimit
from xclip_deploy.service.security.sources import (
    MULTIPART,
    HostNames,
    check_content,
    check_origin,
)
from xclip_deploy.service.security.tokens import Guard
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.wire import API

_HEALTH = ("/health/live", "/health/ready")
_BUSY_S = 1.0


class Gate:
    """Checks of host, origin, type, rate, token and size; it answers whatever a route raises.

    The page's own files and the health of the service need no token, since the page is where one
    signs in.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServiceSettings,
        guard: Guard,
        health: Health,
        answers: ErrorAnswers,
    ) -> None:
        """Guard ``app`` by ``settings``."""
        self._app = app
        self._hosts = HostNames(settings.host, settings.allowed_hosts)
        self._guard = guard
        self._health = health
        self._answers = answers
        self._limit_of = body_limits(settings)
        rate = settings.requests_per_minute
        self._rate = None if rate is None else RateLimit(rate)
        self._stall_s = settings.stall_s
        self._most_running = settings.max_running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: by a refusal, or by the application."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        headers = Headers(scope=scope)
        is_json = path not in MULTIPART
        body = LimitedBody(receive, self._limit_of(path), self._stall_s, is_json=is_json)
        request = Running()

        async def watched(message: Message) -> None:
            request.has_begun = True
            await send(message)
            request.move()

        try:
            self._check(scope, path, headers)
            check_length(headers.get("content-length"), self._limit_of(path))
            with self._counted(request, path):
                await self._app(scope, body, watched)
        except ClientDisconnect:
            raise
        except Exception as error:
            if request.has_begun:
                raise  # the server closes the connection, so that nobody takes a part for all
            has_body = "content-length" in headers or "transfer-encoding" in headers
            await self._answers.send(body.refusal or error, send, unread=body if has_body else None)

    def _check(self, scope: Scope, path: str, headers: Headers) -> None:
        """Raise Refusal unless the request may go on."""
        method: str = scope["method"]
        host = self._hosts.check(headers)
        check_origin(method, path, headers, host)
        check_content(method, path, headers)
        if path in _HEALTH:
            return
        if self._health.is_stopping:
            raise Refusal(
                503,
                "ShuttingDown",
                "the service is shutting down; try again once it runs",
                retry_after_s=5,
                headers={"Connection": "close"},
            )
        if path == "/" or path.startswith("/static/"):
            return
        if self._rate is not None:
            self._rate.take(scope["client"][0] if scope.get("client") else "")
        if path != f"{API}/session":
            self._guard.check(headers)

    @contextmanager
    def _counted(self, request: Running, path: str) -> Iterator[None]:
        """Count a running request. Raises Refusal if too many run."""
        if path in _HEALTH:
            yield
            return
        running = self._health.running
        if len(running) >= self._most_running:
            raise Refusal(
                429,
                "TooManyRequests",
                f"{self._most_running} requests are running; try again later",
                retry_after_s=_BUSY_S,
            )
        running.add(request)
        try:
            yield
        finally:
            running.discard(request)
