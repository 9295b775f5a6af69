"""The jobs that wait or run, in memory and in the ledger, as clients see them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.news import News
from xclip_deploy.service.jobs.records import Job
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.wire import JobModel, JobPage, ProgressModel

Result = TypeVar("Result")
_PAGE = 100
_RETRY_S = 5.0
_LOG = logging.getLogger(__name__)


class JobTable:
    """The jobs of a service. It is safe to use from several threads.

    The ledger keeps every state; progress lives in memory alone, since a job that starts again has
    none.
    """

    def __init__(self, ledger: Ledger, metrics: ServiceMetrics) -> None:
        """Take up the jobs that an earlier start left."""
        self._ledger = ledger
        self._metrics = metrics
        self.news = News(ledger.first_event)
        self._wake = threading.Condition(threading.RLock())
        self._is_stopping = False
        self._progress: ProgressModel | None = None
        self._active: dict[str, Job] = {}
        for job in ledger.unfinished():
            self._change(job)  # so that clients hear that it waits again
        self._count()

    # -- what clients see -------------------------------------------------------------------

    def get(self, job_id: str) -> JobModel:
        """Return a job. Raises Refusal (404) if there is none."""
        with self._wake:
            job = self._active.get(job_id) or self._ledger.get(job_id)
            if job is None:
                raise Refusal(404, "UnknownJob", "no such job; expected the id of one that is kept")
            return self._model(job)

    def page(self, limit: int, offset: int) -> JobPage:
        """Return jobs, the newest first."""
        with self._wake:
            jobs, total = self._ledger.newest(limit, offset)
            models = [self._model(self._active.get(job.id, job)) for job in jobs]
        return JobPage(jobs=models, total=total)

    def changed_since(self, event: int, job_id: str | None = None) -> list[JobModel]:
        """Return the jobs, or the one, whose last event is later, in the order of these events."""
        with self._wake:
            if job_id is not None:
                job = self.get(job_id)
                return [job] if job.last_event > event else []
            ended = self._ledger.ended_since(event, _PAGE)
            most = ended[-1].last_event if len(ended) == _PAGE else self.news.last
            jobs = [*ended, *self._active.values()]
            found = [self._model(job) for job in jobs if event < job.last_event <= most]
        return sorted(found, key=lambda job: job.last_event)

    def unfinished(self) -> list[JobModel]:
        """Return the jobs that wait or run, in the order of their last events."""
        with self._wake:
            models = [self._model(job) for job in self._active.values()]
        return sorted(models, key=lambda job: job.last_event)

    @property
    def is_stopping(self) -> bool:
        """Whether the service is shutting down; streams of events then end."""
        return self._is_stopping

    def _model(self, job: Job) -> JobModel:
        return job.model(self._progress if job.state == "running" else None)

    # -- states ---------------------------------------------------------------------------

    def _change(self, job: Job, **changes: Any) -> Job:  # noqa: ANN401 - fields of a job
        """Give a job another state under a new event, in the ledger first."""
        with self._wake:
            job = replace(job, last_event=self.news.number(), **changes)
            self._ledger.save(job)
            if job.has_ended:
                self._active.pop(job.id, None)
            else:
                self._active[job.id] = job
            self._count()
        return job

    def _settled(self, job: Job, **changes: Any) -> Job:  # noqa: ANN401 - fields of a job
        """Change a job, trying again while the disk is full. Raises Refusal once that stops."""
        return self._insist(job, lambda: self._change(job, **changes))

    def _insist(self, job: Job, change: Callable[[], Result]) -> Result:
        """Write to the ledger, trying again while the disk is full. Raises Refusal at the end."""
        while True:
            try:
                return change()
            except Refusal as error:  # noqa: PERF203 - once in seconds
                _LOG.warning("job %s cannot be recorded, so it is tried again: %s", job.id, error)
                with self._wake:
                    if self._is_stopping:
                        raise
                    self._wake.wait(_RETRY_S)

    def _try(self, job: Job, **changes: Any) -> Job | None:  # noqa: ANN401 - fields of a job
        """Change a job; None if the disk is full."""
        try:
            return self._change(job, **changes)
        except Refusal as error:
            _LOG.warning("job %s cannot be recorded, so it is tried again: %s", job.id, error)
            return None

    def _count(self) -> None:
        waiting = sum(job.state == "waiting" for job in self._active.values())
        self._metrics.waiting("jobs").set(waiting)
