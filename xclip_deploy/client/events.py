"""Server-sent events of jobs: reading them, and following a job over broken connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from xclip_deploy.client.exchange import (
    SILENCE_S,
    BrokenError,
    Emit,
    Flow,
    Pause,
    Read,
    RefusedError,
    Request,
    address_of,
    attempt,
    connection_error,
    exchange,
    may_repeat,
    opened,
)
from xclip_deploy.client.reading import model_of
from xclip_deploy.client.settings import Rules
from xclip_deploy.errors import ServiceError, ServiceTimeoutError
from xclip_deploy.wire import JobModel

ENDED = ("done", "failed", "cancelled")
"""States after which nothing happens to a job."""
_MAX_EVENT_BYTES = 16 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Event:
    """One event."""

    id: str
    kind: str
    data: str


class EventReader:
    """A parser of ``text/event-stream``, which takes bytes as they come."""

    def __init__(self) -> None:
        self._pending = b""
        self._size = 0
        self._id = ""
        self._kind = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that end in ``chunk``. Raises ServiceError for one without an end."""
        self._pending += chunk
        self._size += len(chunk)
        if self._size > _MAX_EVENT_BYTES:
            raise ServiceError(
                f"the service sends an event of more than {_MAX_EVENT_BYTES:,} bytes; expected "
                "one that is no larger"
            )
        start = 0
        for end in _LINE_END.finditer(self._pending):
            if end[0] == b"\r" and end.end() == len(self._pending):
                break  # a line feed may follow
            line = self._pending[start : end.start()].decode("utf-8", "replace")
            start = end.end()
            event = self._line(line)
            if event is not None:
                yield event
        self._pending = self._pending[start:]

    def _line(self, line: str) -> Event | None:
        if not line:
            event = Event(self._id, self._kind or "message", "\n".join(self._data))
            is_whole = bool(self._data)
            self._kind, self._data, self._size = "", [], 0
            return event if is_whole else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:  # a comment, which keeps the connection alive
            self._size = 0 if not self._data else self._size
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None


def get_job(job_id: str, rules: Rules, until: float | None = None) -> Flow[JobModel]:
    """Ask for the state of a job."""
    return exchange(_state_of(job_id), rules, model_of(JobModel, rules), until)


def _state_of(job_id: str) -> Request:
    return Request("GET", address_of("jobs", job_id))


def follow_job(
    job_id: str,
    rules: Rules,
    timeout_s: float | None,
    patience_s: float = _PATIENCE_S,
) -> Flow[JobModel]:
    """Emit every state of a job until it ends; return the last.

    A connection that breaks is made again, from the event after the last one. ``timeout_s``: most
    seconds in all; None waits for ever. ``patience_s``: most seconds without a connection.
    """
    until = float("inf") if timeout_s is None else rules.deadline(timeout_s)
    job = yield from get_job(job_id, rules, min(until, rules.deadline()))
    yield Emit(job)
    if job.state in ENDED:
        return job
    seen = _Seen(job.last_event, rules.clock())
    failures = 0
    while True:
        before, retry_after_s = seen.last_event, None
        try:
            ended = yield from _listen(job_id, rules, until, seen)
            if ended is not None:
                return ended
            # The stream ended and the job did not, or its last event was lost.
            until_s = min(until, rules.deadline())
            read = model_of(JobModel, rules)
            job = yield from attempt(_state_of(job_id), rules, read, until_s)
            seen.contact_s = rules.clock()
            if job.state in ENDED:
                yield Emit(job)
                return job
            failure: Exception = ServiceError("the service ended the stream of a job's events")
        except BrokenError as broken:
            failure = connection_error(broken, rules)
        except RefusedError as refused:
            if not may_repeat(refused):
                raise refused.error from None
            failure, retry_after_s = refused.error, refused.retry_after_s
        if rules.clock() >= until:
            raise ServiceTimeoutError(
                f"job {job_id:.100} did not end within {timeout_s:g} s; it goes on"
            )
        failures = 1 if seen.last_event > before else failures + 1
        pause_s = rules.pause_s(failures, retry_after_s)
        if rules.clock() + pause_s - seen.contact_s > patience_s:
            raise failure
        yield Pause(max(0.0, min(pause_s, until - rules.clock())))


@dataclass
class _Seen:
    """The number of the last event, and the time of the last contact."""

    last_event: int
    contact_s: float


def _listen(job_id: str, rules: Rules, until: float, seen: _Seen) -> Flow[JobModel | None]:
    """Emit the events of one connection; return the job if it ended."""
    request = Request(
        "GET",
        address_of("jobs", job_id, "events"),
        headers={"Accept": "text/event-stream", "Last-Event-ID": str(seen.last_event)},
        is_stream=True,
    )
    head = yield from opened(request, rules, until)
    seen.contact_s = rules.clock()
    if head.status == 204:
        return None  # the job has ended, and nothing is newer
    if head.kind != "text/event-stream":
        raise ServiceError(
            f"the events of a job came as {head.kind!r:.100}; expected text/event-stream",
            status=head.status,
        )
    reader = EventReader()
    while True:
        chunk: bytes | None = yield Read(min(max(until - rules.clock(), 0.0), SILENCE_S))
        if chunk is None:
            return None
        seen.contact_s = rules.clock()
        for event in reader.feed(chunk):
            number = int(event.id) if re.fullmatch(r"\d{1,18}", event.id) else None
            if event.kind != "job" or (number is not None and number <= seen.last_event):
                continue  # one that was seen before the connection broke
            try:
                job = JobModel.model_validate_json(event.data)
            except ValidationError as error:
                raise ServiceError(
                    f"an event of job {job_id:.100} is not as expected; the service may be of "
                    "another version than the client"
                ) from error
            if number is not None:
                seen.last_event = number
            yield Emit(job)
            if job.state in ENDED:
                return job
        if rules.clock() > until:
            raise BrokenError("the time is up", is_sent=True, is_timeout=True)
