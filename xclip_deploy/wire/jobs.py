"""Jobs: indexing that runs behind requests."""

from __future__ import annotations

from typing import Literal

from xclip_deploy.wire.base import ErrorModel, WireModel

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
"""``done`` means that the run ended; its report names videos that failed."""


class ProgressModel(WireModel):
    """State of a running job; see :class:`Progress`."""

    stage: str
    done: int
    total: int | None
    failed: int
    step: str
    fraction: float
    note: str


class FailureModel(WireModel):
    """A file with a fault, by its name."""

    name: str
    reason: str


class ReportModel(WireModel):
    """Outcome of every file; see :class:`IndexReport`. Videos are named by id and handle."""

    indexed: list[str]
    changed: list[str]
    unchanged: list[str]
    duplicates: dict[str, str]
    pruned: list[str]
    failed: list[FailureModel]
    warnings: list[FailureModel]
    passed_over: list[str]
    seconds: float


class JobModel(WireModel):
    """One job."""

    id: str
    kind: Literal["upload", "index"]
    state: JobState
    title: str
    """Names of what is added, for people."""
    created_s: float
    """Seconds since 1970."""
    started_s: float | None
    ended_s: float | None
    num_starts: int
    """How often the job started; above 1 after a restart of the service."""
    progress: ProgressModel | None
    report: ReportModel | None
    error: ErrorModel | None
    videos: list[str]
    """Handles of the videos that the job added or found unchanged, 1,000 at most."""
    last_event: int
    """Number of the newest event, for ``Last-Event-ID``."""


class JobPage(WireModel):
    """Jobs, the newest first."""

    jobs: list[JobModel]
    total: int
