"""The records of a job and of an uploaded file, as the ledger keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from xclip_deploy.wire import AddOptions, JobModel, JobState, ProgressModel, ReportModel
from xclip_deploy.wire.base import ErrorModel, WireModel

JobKind = Literal["upload", "index"]
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
"""States that a job never leaves."""


@dataclass(frozen=True)
class UploadedFile:
    """A file that a client sent, stored by its content."""

    content_sha256: str
    name: str
    """Name in the store, which is also shown."""
    size_bytes: int


class JobRequest(WireModel):
    """What a job does, so that it can begin again."""

    options: AddOptions
    paths: list[str] = Field(default_factory=list)
    """Paths on the server, as they were found to be allowed."""
    prune: bool = False
    uploads: list[tuple[str, str, int]] = Field(default_factory=list)
    """Hash, name and size of every uploaded file."""

    @property
    def files(self) -> list[UploadedFile]:
        """The uploaded files."""
        return [UploadedFile(*each) for each in self.uploads]


@dataclass(frozen=True)
class Job:
    """A job as the ledger has it."""

    number: int
    """Position in the queue."""
    id: str
    kind: JobKind
    title: str
    request: JobRequest
    created_s: float
    state: JobState = "waiting"
    started_s: float | None = None
    ended_s: float | None = None
    num_starts: int = 0
    num_lost: int = 0
    """Starts in a row after which the service ended without a word."""
    was_checked: bool = False
    """Whether its videos were found to be new, where duplicates are an error."""
    was_cancelled: bool = False
    """Whether a client cancelled it while it ran."""
    last_event: int = 0
    report: ReportModel | None = None
    error: ErrorModel | None = None
    videos: tuple[str, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to the job."""
        return self.state in ENDED

    def model(self, progress: ProgressModel | None = None) -> JobModel:
        """Return the job as clients see it."""
        return JobModel(
            id=self.id,
            kind=self.kind,
            state=self.state,
            title=self.title,
            created_s=self.created_s,
            started_s=self.started_s,
            ended_s=self.ended_s,
            num_starts=self.num_starts,
            progress=progress,
            report=self.report,
            error=self.error,
            videos=list(self.videos),
            last_event=self.last_event,
        )
