"""Calls that add videos, and calls of jobs, as flows that either client runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from xclip_deploy.client.answers import error_of, printable_line
from xclip_deploy.client.bodies import FilePart, FormBody, JsonBody
from xclip_deploy.client.events import follow_job, get_job
from xclip_deploy.client.exchange import Flow, Repeat, Request, address_of, exchange
from xclip_deploy.client.reading import model_of, report_of
from xclip_deploy.client.settings import Rules
from xclip_deploy.client.verbs import made
from xclip_deploy.client.videos import sendable
from xclip_deploy.errors import InvalidArgumentError, ServiceError
from xclip_deploy.runtime.arguments import as_instance, as_number, as_paths, as_whole_number
from xclip_deploy.runtime.gallery import MetadataValue
from xclip_deploy.runtime.gallery.records import plain_metadata
from xclip_deploy.runtime.indexing import IndexReport, OnDuplicate
from xclip_deploy.runtime.progress import Progress, ProgressFunction
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.wire import IndexRequest, JobModel, JobPage
from xclip_deploy.wire.gallery import MAX_PAGE


@dataclass(frozen=True)
class AddOptions:
    """Options of additions; see :meth:`Retriever.add`."""

    metadata: Mapping[str, MetadataValue] | None = None
    segment: str | float | Segmentation | None = None
    stride: str | float | None = None
    on_duplicate: OnDuplicate = "update"
    prune: bool = False
    thumbnails: bool = True

    def request(self, paths: Sequence[str]) -> IndexRequest:
        """Return the request for some paths. Raises InvalidArgumentError."""
        segment, stride = _segmentation(self.segment, self.stride)
        if self.metadata is not None:
            as_instance("metadata", self.metadata, Mapping, "a mapping of fields to values")
        return made(
            IndexRequest,
            paths=list(paths),
            metadata=None if self.metadata is None else plain_metadata(self.metadata),
            segment=segment,
            stride=stride,
            on_duplicate=self.on_duplicate,
            prune=self.prune,
            thumbnails=self.thumbnails,
        )


def add(
    rules: Rules, paths: str | PathLike[str] | Iterable[str | PathLike[str]], options: AddOptions
) -> Flow[JobModel]:
    """Start a job that adds files and folders of the service's machine."""
    given = [fspath(path) for path in as_paths("paths", paths)]
    request = Request(
        "POST",
        address_of("index"),
        body=JsonBody.of(options.request(given)),
        repeat=Repeat.REFUSED,
    )
    return (yield from exchange(request, rules, model_of(JobModel, rules)))


def upload(
    rules: Rules,
    files: str | PathLike[str] | Iterable[str | PathLike[str]],
    options: AddOptions,
    progress: ProgressFunction | None,
    timeout_s: float | None,
) -> Flow[JobModel]:
    """Upload local files and start a job that adds them. Bytes are sent once."""
    parts = [FilePart.of("files", file) for file in as_paths("files", files)]
    if not parts:
        raise InvalidArgumentError("files is empty; expected at least one file")
    chosen = options.request(["uploaded"]).model_dump_json(
        exclude={"paths", "prune"}, exclude_defaults=True
    )
    body = FormBody([("options", chosen, "application/json")], parts, progress)
    request = Request("POST", address_of("videos"), body=body, repeat=Repeat.UNSENT)
    until = float("inf") if timeout_s is None else rules.deadline(_seconds(timeout_s))
    return (yield from exchange(request, rules, model_of(JobModel, rules), until))


def list_jobs(rules: Rules, limit: int) -> Flow[JobPage]:
    """Ask for the newest jobs."""
    count = as_whole_number("limit", limit, 1, MAX_PAGE)
    request = Request("GET", address_of("jobs"), [("limit", str(count))])
    return (yield from exchange(request, rules, model_of(JobPage, rules)))


def cancel(rules: Rules, job_id: str) -> Flow[JobModel]:
    """Cancel a job; one that ended stays as it is."""
    request = Request("DELETE", address_of("jobs", job_id))
    return (yield from exchange(request, rules, model_of(JobModel, rules)))


def follow(rules: Rules, job_id: str, timeout_s: float | None) -> Flow[JobModel]:
    """Emit every state of a job until it ends."""
    limit = None if timeout_s is None else _seconds(timeout_s)
    return (yield from follow_job(job_id, rules, limit))


def job_state(rules: Rules, job_id: str) -> Flow[JobModel]:
    """Ask for the state of a job."""
    return (yield from get_job(sendable("job_id", job_id), rules))


def outcome_of(job: JobModel) -> IndexReport:
    """Return the report of a job that ended. Raises the error of one that failed."""
    name = f"job {job.id:.100}"
    if job.error is not None:
        raise error_of(job.error)
    if job.state == "cancelled":
        raise ServiceError(f"{name} was cancelled; start another", kind="cancelled")
    if job.report is None:
        raise ServiceError(f"{name} is {job.state} and has no report; expected one")
    return report_of(job.report)


def progress_of(job: JobModel) -> Progress | None:
    """Return the progress of a job as indexing reports it; None before it begins."""
    state = job.progress
    if state is None:
        return None
    return Progress(
        printable_line(state.stage),
        state.done,
        state.total,
        state.failed,
        printable_line(state.step),
        state.fraction,
        printable_line(state.note),
    )


def _seconds(timeout_s: float) -> float:
    return as_number("timeout_s", timeout_s, 0)


def _segmentation(
    segment: str | float | Segmentation | None, stride: str | float | None
) -> tuple[str | None, str | None]:
    """Write a segmentation as the service reads it. Raises InvalidArgumentError."""
    if isinstance(segment, Segmentation):
        if stride is not None:
            raise InvalidArgumentError("stride was given beside a policy that has one")
        if segment.kind == "shots":
            raise InvalidArgumentError(
                "segment is a policy of shots, whose length does not travel; expected "
                "segment='shots' and a stride"
            )
        stride = segment.stride_s
        segment = "whole" if segment.window_s is None else segment.window_s
    return _text("segment", segment), _text("stride", stride)


def _text(name: str, value: str | float | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"{as_number(name, value):.10g}"
