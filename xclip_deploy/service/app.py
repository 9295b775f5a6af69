"""The ASGI application of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from xclip_deploy.service.answers import ErrorAnswers
from xclip_deploy.service.health import Health
from xclip_deploy.service.logs import METHODS, RequestLog
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.routes import (
    adding,
    encoding,
    evidence,
    gallery,
    jobs,
    media,
    page,
    search,
    session,
    similar,
)
from xclip_deploy.service.routes import health as health_routes
from xclip_deploy.service.security.gate import Gate
from xclip_deploy.service.security.tokens import Guard, check_binding
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.state import Service, folders_of
from xclip_deploy.service.watching import ask_model, keep_watch
from xclip_deploy.wire import API, ErrorBody

_ERRORS = (400, 401, 403, 404, 405, 408, 409, 410, 411, 413, 415, 416, 422, 429, 500, 501, 503, 507)
_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in _ERRORS}


def create_app(settings: ServiceSettings, service: Service | None = None) -> FastAPI:
    """Return the application. Its lifespan opens and closes the bundle and the gallery.

    ``service``: one that is open already, which the lifespan closes. Raises InvalidArgumentError
    for an address that others reach, without a token.
    """
    check_binding(settings.host, settings.token)
    metrics = ServiceMetrics() if service is None else service.metrics
    health = Health() if service is None else service.health
    answers = ErrorAnswers(metrics, health, folders_of(settings))
    guard = Guard(settings.token)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = service
        if opened is None:
            opened = await asyncio.to_thread(Service, settings, metrics, health)
        app.state.service = opened
        try:
            if not health.is_ready:
                await ask_model(opened)
            watch = asyncio.create_task(keep_watch(opened))
            try:
                yield
            finally:
                health.begin_shutdown()
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
        finally:
            # Threads finish what runs; meanwhile the loop serves what waits for them.
            await asyncio.to_thread(opened.close)

    app = FastAPI(
        title="xclip-deploy",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
        responses=_RESPONSES,
        redirect_slashes=False,
    )
    app.state.guard = guard
    app.state.health = health

    async def answer(request: Request, error: Exception) -> Response:
        response = answers.response(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(_methods_of(request))
        return response

    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, answer)
    # The last one added is the outermost.
    app.add_middleware(Gate, settings=settings, guard=guard, health=health, answers=answers)
    app.add_middleware(RequestLog, metrics=metrics)
    for module in (search, similar, evidence, encoding, gallery, media, adding, jobs, session):
        app.include_router(module.router, prefix=API)
    app.include_router(health_routes.router)
    page.add_page(app)
    return app


def _methods_of(request: Request) -> list[str]:
    """Return the methods that an address takes. Its routes know of their own method alone."""
    if request.scope["path"].startswith("/static/"):
        return ["GET", "HEAD"]
    routes = request.app.router.routes
    scopes = [{**request.scope, "method": method} for method in METHODS]
    return [
        scope["method"]
        for scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


def _version() -> str:
    """Return the version of the installed package."""
    try:
        return version("xclip-deploy")
    except PackageNotFoundError:  # a source tree
        return "unknown"
