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
from xclip_deploy.service.health import Health
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.queue import Jobs
from xclip_deploy.service.media import MediaLibrary
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.query_files import QueryFiles
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.searching import Searching
from xclip_deploy.service.served import OneGallery, ServedGallery
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.summary import Summary
from xclip_deploy.service.uploads import Uploads

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8


class Service:
    """A gallery with the threads, queues and stores around it.

    Routes get it from :func:`service_of`. Blocking calls go through :meth:`run`.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        metrics: ServiceMetrics | None = None,
        health: Health | None = None,
    ) -> None:
        """Open the bundle and the gallery.

        Raises as :class:`Retriever` or :class:`ShardedRetriever` does, and InvalidArgumentError
        where the folder of data cannot be used.
        """
        self.settings = settings
        self.metrics = metrics or ServiceMetrics()
        self.health = health or Health()
        # It claims the folder of data, so it comes before what takes time.
        self._ledger = Ledger(settings.data / "jobs.sqlite")
        with ExitStack() as stack:
            stack.callback(self._ledger.close)
            self.served = _opened(settings)
            stack.callback(self.served.close)
            try:
                self._open(settings)
            except OSError as error:
                raise InvalidArgumentError(
                    f"{settings.data}: cannot be used: {error.strerror or error}; expected a "
                    "folder of the service's own, with room"
                ) from error
            stack.pop_all()

    def _open(self, settings: ServiceSettings) -> None:
        self.searching = Searching(self.served, settings, self.metrics)
        self.summary = Summary(self.served, settings)
        self.query_files = QueryFiles(settings, self.served.retriever.reading)
        self.media = MediaLibrary(settings, self.served, self.metrics)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="service")
        self._records: VideoRecords | None = None
        self._warmed: VideoRecords | None = None
        self._num_videos = self._num_segments = 0
        self.metrics.watch(
            lambda: self._num_videos, lambda: self._num_segments, lambda: self.health.is_ready
        )
        self.follow_gallery()
        self.uploads = Uploads(settings, self._ledger)
        self.jobs = Jobs(settings, self.served, self._ledger, self.uploads, self.metrics)

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
        self.served.refresh()
        records = self.served.records()
        if records is not self._records:
            self._records = records
            self._num_videos, self._num_segments = records.num_videos, len(records)
        elif records is not self._warmed:
            self.searching.warm_up()
            self._warmed = records

    def look_for_lost_shards(self) -> None:
        """Ask all shards of the gallery whether they answer, and tell health and metrics."""
        lost = self.served.look_for_lost_shards()
        self.metrics.lost_shards.set(len(lost))
        self.health.set_lost_shards(lost, self.served.num_shards or 0, self.served.allow_partial)

    def close(self) -> None:
        """Wait for running calls, then close the gallery."""
        self.jobs.close()
        self._threads.shutdown(wait=True)
        self.searching.close()
        self.uploads.close()
        self._ledger.close()
        self._records = self._warmed = None
        self.media.close()
        self.served.close()


def _opened(settings: ServiceSettings) -> ServedGallery:
    if settings.cluster is None:
        return OneGallery(settings)
    from xclip_deploy.service.served_shards import ShardGallery

    return ShardGallery(settings, settings.cluster)


def folders_of(settings: ServiceSettings) -> tuple[Path, ...]:
    """Return the folders of a service, for :func:`redacted`."""
    given = (settings.bundle, settings.gallery, settings.data, *settings.roots)
    return tuple({folder for path in given for folder in (path.absolute(), path.resolve())})


async def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
