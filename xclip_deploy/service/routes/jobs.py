"""Routes of jobs, and their progress as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.jobs.records import ENDED
from xclip_deploy.service.state import Service, service_of
from xclip_deploy.wire import JobModel, JobPage
from xclip_deploy.wire.gallery import MAX_PAGE

router = APIRouter(tags=["jobs"])

MAX_LISTENERS = 128
"""Most streams of events at the same time."""
ALIVE_S = 15.0
"""Seconds between two signs of life of a stream, which keep proxies from closing it."""
_RECONNECT_MS = 2000
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events named 'job', each with the whole state of one job (JobModel).",
        "content": {"text/event-stream": {"schema": {}}},
    },
    204: {"description": "The job has ended, and nothing is newer."},
}
JobId = Annotated[str, Path(max_length=64)]
After = Annotated[
    int | None,
    Query(ge=0, lt=1 << 53, description="Number of an event, as Last-Event-ID gives it."),
]
LastEventId = Annotated[str | None, Header(max_length=64)]


@router.get("/jobs")
async def list_jobs(
    service: Annotated[Service, Depends(service_of)],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    offset: Annotated[int, Query(ge=0, lt=1 << 53)] = 0,
) -> JobPage:
    """List jobs, the newest first. Ended ones are kept for 90 days, 1,000 at most."""
    return await service.run(service.jobs.page, limit, offset)


@router.get("/jobs/{job_id}")
async def get_job(job_id: JobId, service: Annotated[Service, Depends(service_of)]) -> JobModel:
    """Return one job."""
    return await service.run(service.jobs.get, job_id)


@router.delete("/jobs/{job_id}")
async def cancel_job(job_id: JobId, service: Annotated[Service, Depends(service_of)]) -> JobModel:
    """Cancel a job. One that runs stops soon, and its events tell; an ended one stays as it is.

    Videos that it added by then stay in the gallery.
    """
    return await service.run(service.jobs.cancel, job_id)


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=_EVENTS)
async def job_events(
    job_id: JobId,
    service: Annotated[Service, Depends(service_of)],
    after: After = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the state of a job at once and whenever it changes, until the job has ended.

    With ``Last-Event-ID`` or ``after``, a state comes only if it is newer. The answer is 204 where
    the job has ended and nothing is newer, which tells a browser not to connect again.
    """
    seen = _number(last_event_id, after, service)
    job = await service.run(service.jobs.get, job_id)
    if job.state in ENDED and seen is not None and job.last_event <= seen:
        return Response(status_code=204)
    return _stream(service, seen or 0, job_id)


@router.get("/events", response_class=StreamingResponse, responses=_EVENTS)
async def all_events(
    service: Annotated[Service, Depends(service_of)],
    after: After = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the state of every job that changes, and at first of those that have not ended.

    With ``Last-Event-ID`` or ``after``, every job comes that changed since, ended ones too.
    """
    return _stream(service, _number(last_event_id, after, service), None)


def _number(last_event_id: str | None, after: int | None, service: Service) -> int | None:
    """Return the last event that a client saw; None if it saw none of this service."""
    seen = after
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal():
        seen = int(last_event_id)
    return seen if seen is not None and seen <= service.jobs.news.last else None


def _stream(service: Service, seen: int | None, job_id: str | None) -> StreamingResponse:
    if service.jobs.news.num_listeners >= MAX_LISTENERS:
        raise Refusal(
            429,
            "TooManyListeners",
            f"{MAX_LISTENERS} streams of events are open; expected fewer, so try again later",
            retry_after_s=10,
        )
    return StreamingResponse(
        _events(service, seen, job_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(service: Service, seen: int | None, job_id: str | None) -> AsyncIterator[str]:
    jobs, stopping = service.jobs, service.health.stopping
    news = jobs.news.listen()
    try:
        yield f"retry: {_RECONNECT_MS}\n\n"
        if seen is None:
            seen = jobs.news.last
            for job in await service.run(jobs.unfinished):
                yield _event(job)
                seen = max(seen, job.last_event)
        while not (jobs.is_stopping or stopping.is_set()):
            news.clear()
            changed = await service.run(jobs.changed_since, seen, job_id)
            for job in changed:
                yield _event(job)
                seen = max(seen, job.last_event)
                if job_id is not None and job.state in ENDED:
                    return
            if changed:
                continue
            waits = [asyncio.ensure_future(news.wait()), asyncio.ensure_future(stopping.wait())]
            try:
                done, _ = await asyncio.wait(waits, timeout=ALIVE_S, return_when="FIRST_COMPLETED")
            finally:
                for wait in waits:
                    wait.cancel()
            if not done:
                yield ": alive\n\n"
    finally:
        jobs.news.leave(news)


def _event(job: JobModel) -> str:
    return f"id: {job.last_event}\nevent: job\ndata: {job.model_dump_json()}\n\n"
