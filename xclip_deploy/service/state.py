"""The running service: what its routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.service.health import Health
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.queue import Jobs
from xclip_deploy.service.media import MediaLibrary
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.query_files import QueryFiles
from xclip_deploy.service.searching import Searching
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.summary import Summary
from xclip_deploy.service.uploads import Uploads

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8


class Service:
    """A retriever with the threads, queues and stores around it.

    Routes get it from :func:`service_of`. Blocking calls go through :meth:`run`.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        metrics: ServiceMetrics | None = None,
        health: Health | None = None,
    ) -> None:
        """Open the bundle and the gallery.

        Raises as :class:`Retriever` does, and InvalidArgumentError where the folder of data cannot
        be used.
        """
        self.settings = settings
        self.metrics = metrics or ServiceMetrics()
        self.health = health or Health()
        # It claims the folder of data, so it comes before what takes time.
        self._ledger = Ledger(settings.data / "jobs.sqlite")
        with ExitStack() as stack:
            stack.callback(self._ledger.close)
            self.retriever = Retriever(
                settings.bundle,
                settings.gallery,
                create=not settings.read_only,
                max_batch=settings.max_batch,
                session=settings.session,
            )
            stack.callback(self.retriever.close)
            try:
                self._open(settings)
            except OSError as error:
                raise InvalidArgumentError(
                    f"{settings.data}: cannot be used: {error.strerror or error}; expected a "
                    "folder of the service's own, with room"
                ) from error
            stack.pop_all()

    def _open(self, settings: ServiceSettings) -> None:
        self.searching = Searching(self.retriever, settings, self.metrics)
        self.summary = Summary(self.retriever, settings)
        self.query_files = QueryFiles(settings, self.retriever.reading)
        self.media = MediaLibrary(settings, self.retriever, self.metrics)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="service")
        self._snapshot: Snapshot | None = None
        self._warmed: Snapshot | None = None
        self._num_videos = self._num_segments = 0
        self.metrics.watch(
            lambda: self._num_videos, lambda: self._num_segments, lambda: self.health.is_ready
        )
        self.follow_gallery()
        self.uploads = Uploads(settings, self._ledger)
        self.jobs = Jobs(settings, self.retriever, self._ledger, self.uploads, self.metrics)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function on a thread and return its result.

        Log messages of the function carry the request's id.
        """
        call = partial(copy_context().run, partial(function, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def follow_gallery(self) -> None:
        """Load what other processes wrote to the gallery. Raises GalleryError.

        A gallery that has not changed since the last call is warmed up, so that a long run of
        additions does not load all embeddings after each.
        """
        self.retriever.refresh()
        snapshot = self.retriever.gallery.snapshot()
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._num_videos, self._num_segments = snapshot.num_videos, len(snapshot)
        elif snapshot is not self._warmed:
            self.searching.warm_up()
            self._warmed = snapshot

    def close(self) -> None:
        """Wait for running calls, then close the retriever."""
        self.jobs.close()
        self._threads.shutdown(wait=True)
        self.searching.close()
        self.uploads.close()
        self._ledger.close()
        self._snapshot = self._warmed = None
        self.media.close()
        self.retriever.close()


def folders_of(settings: ServiceSettings) -> tuple[Path, ...]:
    """Return the folders of a service, for :func:`redacted`."""
    given = (settings.bundle, settings.gallery, settings.data, *settings.roots)
    return tuple({folder for path in given for folder in (path.absolute(), path.resolve())})


async def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
