"""The ASGI application of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from xclip_deploy import __version__
from xclip_deploy.service.routes import media, search
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.state import Service
from xclip_deploy.wire import API


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the application. Its lifespan opens and closes the bundle and the gallery."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings)
        app.state.service = service
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="xclip-deploy",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
    )
    app.include_router(search.router, prefix=API)
    app.include_router(media.router, prefix=API)
    return app
