"""The running service: what its routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from fastapi import Request

from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.service.media import MediaLibrary
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.searching import Searching
from xclip_deploy.service.settings import ServiceSettings

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8


class Service:
    """A retriever with the threads, queues and stores around it.

    Routes get it from :func:`service_of`. Blocking calls go through :meth:`run`.
    """

    def __init__(self, settings: ServiceSettings, metrics: ServiceMetrics | None = None) -> None:
        """Open the bundle and the gallery. Raises as :class:`Retriever` does."""
        self.settings = settings
        self.metrics = metrics or ServiceMetrics()
        self.retriever = Retriever(
            settings.bundle,
            settings.gallery,
            create=not settings.read_only,
            max_batch=settings.max_batch,
            session=settings.session,
        )
        self.searching = Searching(self.retriever, settings, self.metrics)
        self.media = MediaLibrary(settings, self.retriever, self.metrics)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="service")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function on a thread and return its result."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Wait for running calls, then close the retriever."""
        self._threads.shutdown(wait=True)
        self.searching.close()
        self.media.close()
        self.retriever.close()


def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
