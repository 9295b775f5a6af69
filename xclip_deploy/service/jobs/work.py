"""The indexing of one job's videos, and how it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from xclip_deploy.runtime.indexing import (
    IndexReport,
    Sources,
    SourceVideo,
    add_sources,
    choose_segmentation,
    open_sources,
    with_metadata,
)
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.video import UPLOADS, MediaPolicy
from xclip_deploy.service.jobs.records import Job
from xclip_deploy.service.paths import AllowedRoots
from xclip_deploy.service.settings import ServiceSettings

GRACE_S = 20.0
"""Longest time that a stopping service waits for the video in work, seconds."""


class JobCancelledError(Exception):
    """A client cancelled the job."""


class JobPausedError(Exception):
    """The service stops, so the job waits for its next start."""


class Control:
    """What a running job is asked to do, and how far it is.

    :meth:`cancel` and :meth:`pause` are called from any thread; the job's own thread then leaves
    its work by an exception, once.
    """

    def __init__(self, show: Callable[[Progress], None]) -> None:
        """``show``: called with the progress, in the job's thread."""
        self._show = show
        self._is_cancelled = threading.Event()
        self._pause_at: float | None = None
        self._has_left = False
        self._done = -1

    def cancel(self) -> None:
        """Stop at the next look, and keep what was committed."""
        self._is_cancelled.set()

    def pause(self) -> None:
        """Stop after the video in work, or after :data:`GRACE_S`."""
        if self._pause_at is None:
            self._pause_at = time.monotonic() + GRACE_S

    def progress(self, progress: Progress) -> None:
        """Note the progress; leave where a video has ended."""
        self._show(progress)
        has_ended = progress.done > self._done >= 0
        self._done = progress.done
        self._leave_if(self._pause_at is not None and has_ended)

    def pulse(self) -> None:
        """Leave where the patience is over."""
        pause_at = self._pause_at
        self._leave_if(pause_at is not None and time.monotonic() > pause_at)

    def _leave_if(self, is_paused: bool) -> None:
        if self._has_left:
            return  # what was encoded is being committed
        if self._is_cancelled.is_set():
            self._has_left = True
            raise JobCancelledError
        if is_paused:
            self._has_left = True
            raise JobPausedError


def index_videos(
    job: Job,
    uploaded: Sequence[Path],
    retriever: Retriever,
    roots: AllowedRoots,
    settings: ServiceSettings,
    control: Control,
    note_checked: Callable[[], None],
) -> IndexReport:
    """Add the videos of a job to the gallery: see :meth:`Retriever.add`.

    A job that began before finds its committed videos unchanged. ``note_checked`` is called once
    the videos were found to be new, where duplicates are an error: later starts must not take the
    job's own videos for duplicates.

    Raises:
        JobCancelledError: A client cancelled the job.
        JobPausedError: The service stops.
        Refusal: A path no longer lies in an allowed folder.
        XclipDeployError: As :meth:`Retriever.add` raises it.
    """
    options, gallery = job.request.options, retriever.gallery
    sources, policy = _sources(job, uploaded, roots, settings)
    if options.metadata is not None:
        sources = with_metadata(sources, options.metadata)
    on_duplicate = options.on_duplicate
    if on_duplicate == "error":
        if not job.was_checked:
            gallery.refresh()
            gallery.check_new([source.wanted_id for source in sources.videos])
            note_checked()
        on_duplicate = "update"
    return add_sources(
        gallery,
        retriever.model,
        replace(retriever.reading, policy=policy),
        sources,
        segmentation=choose_segmentation(
            gallery, retriever.reading, options.segment, options.stride
        ),
        on_duplicate=on_duplicate,
        prune=job.request.prune,
        thumbnails=options.thumbnails,
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        progress=control.progress,
        pulse=control.pulse,
    )


def upload_policy(settings: ServiceSettings) -> MediaPolicy:
    """Return the policy by which decoders open files of strangers."""
    return replace(UPLOADS, max_duration_s=settings.max_duration_s)


def _sources(
    job: Job, uploaded: Sequence[Path], roots: AllowedRoots, settings: ServiceSettings
) -> tuple[Sources, MediaPolicy]:
    if job.kind == "upload":
        # Each is a video, whatever its name: an uploaded list must not name other files.
        names = dict.fromkeys(map(str, uploaded))
        return Sources([SourceVideo(name) for name in names]), upload_policy(settings)
    paths = [roots.locate(path) for path in job.request.paths]
    policy = MediaPolicy(within=roots.real, memory_bytes=UPLOADS.memory_bytes)
    return open_sources(paths, accepts=roots.holds), policy
