"""The queue of jobs: one thread works on one job at a time, in the order of their arrival."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.gallery.records import check_metadata
from xclip_deploy.runtime.indexing import IndexReport, choose_segmentation
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.video.media_policy import flaw_of_ffmpeg
from xclip_deploy.service.errors import Refusal, error_of, shortened
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.records import Job, JobKind, JobRequest, UploadedFile
from xclip_deploy.service.jobs.reports import ReportWriter, progress_model
from xclip_deploy.service.jobs.table import JobTable
from xclip_deploy.service.jobs.work import (
    Control,
    JobCancelledError,
    JobPausedError,
    index_videos,
)
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.naming import videos_with_content
from xclip_deploy.service.paths import AllowedRoots
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.served import ServedGallery
from xclip_deploy.service.settings import ServiceSettings
from xclip_deploy.service.uploads import Received, Uploads
from xclip_deploy.wire import AddOptions, IndexRequest, JobModel
from xclip_deploy.wire.base import ErrorModel

MAX_WAITING = 256
"""Most jobs that wait; more are refused with 429."""
MAX_LOST = 20
"""Starts in a row after which the service ended without a word that make a job fail."""
_EVERY_S = 0.25
_RETRY_S = 5.0
_MAX_TITLE = 200
_NAMED = 3
_LOG = logging.getLogger(__name__)


class Jobs(JobTable):
    """The jobs of a service. It is safe to use from several threads."""

    def __init__(
        self,
        settings: ServiceSettings,
        served: ServedGallery,
        ledger: Ledger,
        uploads: Uploads,
        metrics: ServiceMetrics,
    ) -> None:
        """Take up the jobs that an earlier start left, and begin to work.

        Raises InvalidArgumentError if one of ``settings.roots`` is no folder.
        """
        super().__init__(ledger, metrics)
        if (flaw := flaw_of_ffmpeg()) is not None:
            _LOG.warning("libavcodec is %s: %s", flaw.version, flaw.advice)
        self._settings = settings
        self._served = served
        self._uploads = uploads
        self.roots = AllowedRoots(settings.roots, excluded=[settings.data, settings.gallery])
        """Folders whose files may be added by path."""
        self._control: Control | None = None
        self._shown_s = 0.0
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        if served.is_writable:
            self._thread.start()
        elif self._active:
            _LOG.warning(
                "%d jobs wait for a service over the gallery that they add to", len(self._active)
            )

    # -- new jobs -------------------------------------------------------------------------

    def add_uploads(self, received: Received, options: AddOptions) -> JobModel:
        """Store received files and queue a job that indexes them. Once it returns, both last.

        Raises Refusal, InvalidArgumentError, MetadataError, GallerySegmentationError.
        """
        self._check(options)
        names = [file.name for file in received.files]
        files = self._uploads.store(received)
        try:
            uploads = [(file.content_sha256, file.name, file.size_bytes) for file in files]
            return self._add("upload", names, JobRequest(options=options, uploads=uploads))
        except BaseException:
            self._uploads.settle(files, lambda _file: None)
            raise

    def add_paths(self, request: IndexRequest) -> JobModel:
        """Queue a job that indexes files and folders on the server.

        Raises Refusal (403 for a path outside the allowed folders), VideoNotFoundError, and as
        :meth:`add_uploads` does.
        """
        if not self.roots:
            raise Refusal(
                403,
                "PathNotAllowed",
                "the service has no folder whose files may be added; expected an upload, or a "
                "service that was started with --root FOLDER",
            )
        options = AddOptions(**request.model_dump(exclude={"paths", "prune"}))
        self._check(options)
        paths = [str(self.roots.locate(path)) for path in request.paths]
        names = [path.rpartition("/")[2] for path in paths]
        return self._add(
            "index", names, JobRequest(options=options, paths=paths, prune=request.prune)
        )

    def check_open(self) -> None:
        """Raise Refusal if no job can be added now, before an upload is received in vain."""
        if self._settings.read_only:
            raise Refusal(403, "ReadOnly", "this service only reads; expected one that may add")
        self._served.check_writable()
        if self._is_stopping:
            raise Refusal(
                503, "ShuttingDown", "the service is shutting down; try again", retry_after_s=10
            )
        if len(self._active) >= MAX_WAITING:
            raise Refusal(
                429,
                "TooManyJobs",
                f"{len(self._active)} jobs wait; expected fewer, so try again later",
                retry_after_s=30,
            )

    def _check(self, options: AddOptions) -> None:
        """Refuse at once what would fail later."""
        self.check_open()
        if options.metadata is not None:
            check_metadata(options.metadata)
        writer = self._served.writer
        choose_segmentation(writer.gallery, writer.reading, options.segment, options.stride)

    def _add(self, kind: JobKind, names: list[str], request: JobRequest) -> JobModel:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        title = shortened(", ".join(names[:_NAMED]), _MAX_TITLE) + more
        with self._wake:
            self.check_open()
            job = self._ledger.add(
                uuid.uuid4().hex, kind, title, request, self.news.number(), time.time()
            )
            self._active[job.id] = job
            self._count()
            self._wake.notify_all()
        self.news.announce()
        return job.model()

    # -- the end of jobs, and of all ----------------------------------------------------

    def cancel(self, job_id: str) -> JobModel:
        """Cancel a job, and return it: a running one stops soon, an ended one stays as it is.

        Videos that a running job committed stay. Raises Refusal (404) if there is none.
        """
        with self._wake:
            job = self._active.get(job_id)
            if job is None:
                return self.get(job_id)
            if job.state == "running":
                job = self._change(job, was_cancelled=True)  # a start after a crash knows, too
                if self._control is not None:
                    self._control.cancel()
                return self._model(job)
            job = self._change(job, state="cancelled", ended_s=time.time())
        self._let_go(job)
        self.news.announce()
        return job.model()

    def stop(self) -> None:
        """Ask the running job to stop after its video in work, and streams of events to end."""
        with self._wake:
            self._is_stopping = True
            if self._control is not None:
                self._control.pause()
            self._wake.notify_all()
        self.news.announce()

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()

    # -- the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            with _logged(job):
                self._run(job)
            with self._wake:
                self._control = None
                if self._active.get(job.id, job).state == "running":
                    # It could not be recorded. The next start of the service has it again.
                    self._active.pop(job.id, None)

    def _next(self) -> Job | None:
        """Wait for the next job and start it; None when the service stops."""
        with self._wake:
            while not self._is_stopping:
                waiting = [job for job in self._active.values() if job.state == "waiting"]
                if not waiting:
                    self._wake.wait()
                    continue
                job = min(waiting, key=lambda job: job.number)
                starts = {"started_s": time.time(), "num_starts": job.num_starts + 1}
                if (started := self._try(job, state="running", **starts)) is not None:
                    self._progress = None
                    self._control = Control(self._show)
                    return started
                self._wake.wait(_RETRY_S)
        return None

    def _run(self, job: Job) -> None:
        control = self._control
        assert control is not None
        self.news.announce()
        if job.was_cancelled:
            self._finish(job, state="cancelled")
            return
        if job.num_lost >= MAX_LOST:
            message = (
                f"the service ended {job.num_lost} times while this job ran; expected it to go "
                "on, so look for the file that its memory does not suffice for"
            )
            self._finish(job, state="failed", error=_error(Refusal(500, "JobLost", message), job))
            return
        _LOG.info("job %s started: %s", job.id, job.title)
        try:
            with self._metrics.time("index"):
                report = index_videos(
                    job,
                    [self._uploads.path_of(file) for file in job.request.files],
                    self._served.writer,
                    self.roots,
                    self._settings,
                    control,
                    lambda: self._note_checked(job),
                )
            outcome = self._outcome(report)
        except JobPausedError:
            self._settled(self._active[job.id], state="waiting", num_lost=0)
            _LOG.info("job %s waits for the next start of the service", job.id)
            self.news.announce()
            return
        except JobCancelledError:
            outcome = {"state": "cancelled"}
        except Exception as error:  # noqa: BLE001 - the job fails, the service goes on
            expected = isinstance(error, Refusal | XclipDeployError)
            _LOG.warning("job %s failed: %s", job.id, error, exc_info=not expected)
            outcome = {"state": "failed", "error": _error(error, job, self._settings)}
            self._metrics.failures.labels(outcome["error"].kind).inc()
        self._finish(self._active[job.id], **outcome)

    def _outcome(self, report: IndexReport) -> dict[str, Any]:
        settings = self._settings
        folders = [settings.data, settings.gallery, *settings.roots]
        writer = ReportWriter(
            self._served.writer.gallery.snapshot(), folders, show_paths=settings.show_paths
        )
        return {
            "state": "done",
            "report": writer.write(report),
            "videos": writer.handles(report),
        }

    def _finish(self, job: Job, **outcome: Any) -> None:  # noqa: ANN401 - fields of a job
        files = job.request.files
        self._insist(job, lambda: self._uploads.keep(files, self._is_listed))
        job = self._settled(job, ended_s=time.time(), num_lost=0, **outcome)
        self.news.announce()
        _LOG.info("job %s %s", job.id, job.state)
        self._let_go(job)
        with _logged(job):
            self._ledger.prune()

    def _let_go(self, job: Job) -> None:
        """Keep the uploaded files that the gallery lists, and remove the others."""
        with _logged(job):  # the next start removes what could not be removed now
            self._uploads.settle(job.request.files, self._is_listed)

    def _is_listed(self, file: UploadedFile) -> bool | None:
        try:
            gallery = self._served.writer.gallery
            gallery.refresh()
            records = VideoRecords([gallery.snapshot()])
            videos = videos_with_content(records, file.content_sha256)
            path = str(self._uploads.path_of(file))
            return any(path == each.path for video in videos for each in video.files)
        except XclipDeployError as error:
            _LOG.warning("an uploaded file is kept, as the gallery cannot be read: %s", error)
            return None

    def _note_checked(self, job: Job) -> None:
        self._settled(self._active[job.id], was_checked=True)

    def _show(self, progress: Progress) -> None:
        model = progress_model(progress)
        now_s = time.monotonic()
        with self._wake:
            self._progress = model
            if now_s - self._shown_s < _EVERY_S and progress.done != progress.total:
                return
            self._shown_s = now_s
            running = next(job for job in self._active.values() if job.state == "running")
            # The ledger need not know: numbers of the next start are larger anyway.
            self._active[running.id] = replace(running, last_event=self.news.number())
        self.news.announce()


@contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Log what happens to a job unexpectedly, and go on."""
    try:
        yield
    except Exception:  # noqa: BLE001 - it is logged
        _LOG.exception("job %s could not be recorded in full", job.id)


def _error(error: Exception, job: Job, settings: ServiceSettings | None = None) -> ErrorModel:
    folders = [] if settings is None else [settings.data, settings.gallery, *settings.roots]
    return error_of(error, job.id, folders)
