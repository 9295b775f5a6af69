"""A service of the tests' own, which fails as it is told to, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from xclip_deploy.wire import API, GalleryModel, JobModel, ProgressModel, ReportModel

GALLERY = GalleryModel(
    num_videos=7,
    num_segments=7,
    num_files=7,
    segmentation=None,
    total_duration_s=1.0,
    metadata={},
    size_bytes=None,
    has_index=False,
    fingerprint="f",
    family="xclip",
    placement="cpu",
    can_add_paths=True,
    can_upload=True,
)
FILM = bytes(range(256)) * 4096
"""1 MiB that stands for a film."""


def job_model(number: int, last: int = 6, **changes: Any) -> JobModel:
    """A job after event ``number`` of ``last``."""
    has_ended = number >= last
    report = ReportModel(
        indexed=["a"],
        changed=[],
        unchanged=[],
        duplicates={},
        pruned=[],
        failed=[],
        warnings=[],
        passed_over=[],
        seconds=0.5,
    )
    values: dict[str, Any] = {
        "id": "j1",
        "kind": "upload",
        "state": "done" if has_ended else "running",
        "title": "a.mp4",
        "created_s": 0.0,
        "started_s": 1.0,
        "ended_s": 2.0 if has_ended else None,
        "num_starts": 1,
        "progress": ProgressModel(
            stage="videos", done=number, total=last, failed=0, step="", fraction=0.0, note=""
        ),
        "report": report if has_ended else None,
        "error": None,
        "videos": ["a"] if has_ended else [],
        "last_event": number,
    }
    return JobModel(**{**values, **changes})


@dataclass
class FlakyService:
    """The requests that came, and the answers to the next ones."""

    address: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers of the next answers; then all is well."""
    forms: list[dict[str, Any]] = field(default_factory=list)
    events_a_connection: int = 2
    connections: list[int] = field(default_factory=list)
    """Last-Event-ID of each connection."""
    loses_last_event: bool = False
    last: int = 6
    event: int = 0
    """Number of the newest event of the job."""
    broken_cuts: int = 0
    """Downloads that break midway."""
    cut_headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0

    async def gallery(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.delay_s)
        if self.refusals:
            status, headers = self.refusals.pop(0)
            body = {"error": {"kind": "Busy", "message": "too many; wait", "request_id": "r"}}
            return JSONResponse(body, status, headers)
        return Response(GALLERY.model_dump_json(), media_type="application/json")

    async def upload(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        if self.refusals:
            status, headers = self.refusals.pop(0)
            body = {"error": {"kind": "Busy", "message": "too many; wait", "request_id": "r"}}
            return JSONResponse(body, status, headers)
        async with request.form() as form:
            files = []
            for name, value in form.multi_items():
                if not isinstance(value, str):
                    content = await value.read()
                    files.append((name, value.filename, len(content), digest(content)))
            self.forms.append({"options": form.get("options"), "files": files})
        return Response(job_model(0).model_dump_json(), 202, media_type="application/json")

    async def job(self, _request: Request) -> Response:
        number = self.last if self.loses_last_event and len(self.connections) > 2 else self.event
        return Response(
            job_model(number, self.last).model_dump_json(), media_type="application/json"
        )

    async def events(self, request: Request) -> Response:
        last = int(request.headers["last-event-id"])
        self.connections.append(last)
        first = max(1, last - 1)  # replays some that were seen
        end = self.last - 1 if self.loses_last_event else self.last

        async def stream() -> AsyncIterator[bytes]:
            yield b": hello\n\n"
            for number in range(first, min(last + self.events_a_connection, end) + 1):
                self.event = max(self.event, number)
                text = f"id: {number}\r\nevent: job\r\ndata: "
                yield text.encode()
                yield job_model(number, self.last).model_dump_json().encode() + b"\r\n\r\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def cut(self, request: Request) -> Response:
        headers = {
            "X-Start-S": "1.5",
            "X-End-S": "2.5",
            "X-Has-Sound": "true",
            "X-Mode": request.query_params["mode"],
            "X-Warnings": '["a gap"]',
            "Content-Length": str(len(FILM)),
            **self.cut_headers,
        }
        is_broken = self.broken_cuts > 0
        self.broken_cuts -= is_broken

        async def stream() -> AsyncIterator[bytes]:
            for start in range(0, len(FILM), 1 << 16):
                if is_broken and start > len(FILM) // 2:
                    raise ConnectionError("as told")
                yield FILM[start : start + (1 << 16)]

        return StreamingResponse(stream(), headers=headers, media_type="video/mp4")

    async def redirect(self, _request: Request) -> Response:
        return Response(status_code=307, headers={"Location": f"{API}/gallery"})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route(f"{API}/gallery", self.gallery),
                Route(f"{API}/gallery/refresh", self.redirect, methods=["POST"]),
                Route(f"{API}/videos", self.upload, methods=["POST"]),
                Route(f"{API}/jobs/{{job}}", self.job),
                Route(f"{API}/jobs/{{job}}/events", self.events),
                Route(f"{API}/videos/{{video}}/cut", self.cut),
            ]
        )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


Use = Callable[..., Any]
"""Calls a function with a client and returns its result."""
