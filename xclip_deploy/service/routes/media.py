"""Routes of media: thumbnails, frames, the file itself, playable moments and cuts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from xclip_deploy.runtime.media import CutMode
from xclip_deploy.runtime.moments.worker import PictureFormat
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.service.media.cache import CachedFile, cache_key
from xclip_deploy.service.media.files import (
    CONTAINER_TYPES,
    MediaVideo,
    container_like,
    media_type_of,
    stem_of,
)
from xclip_deploy.service.media.library import MediaLibrary, Span
from xclip_deploy.service.media.responses import (
    OpenFileResponse,
    PictureResponse,
    Validity,
    not_modified,
)
from xclip_deploy.service.state import service_of
from xclip_deploy.wire.base import MAX_ID, ErrorBody

router = APIRouter(tags=["media"])
T = TypeVar("T")
CLIENT_GONE = 499
"""Status in the log for a client that went away; nobody receives it."""
_FRAMES_TYPE = "application/x-npz"

Handle = Annotated[str, Path(min_length=1, max_length=MAX_ID, description="Handle of a video.")]
Seconds = Annotated[float, Query(ge=0, le=1e9, description="Seconds in the video.")]
Padding = Annotated[
    float, Query(ge=0, le=300, description="Seconds to add at both ends, as far as there are.")
]
MaxSide = Annotated[
    int | None, Query(ge=16, le=4096, description="Longer side of pictures, pixels, at most.")
]
Container = Literal["mp4", "mov", "mkv", "webm"]


async def library_of(request: Request) -> MediaLibrary:
    """Return the media library of the service that a request is for."""
    return (await service_of(request)).media


Library = Annotated[MediaLibrary, Depends(library_of)]


def _told(*types: str, is_file: bool = False) -> dict[int | str, dict[str, Any]]:
    """Describe the responses of a route for the API's description."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    found: dict[int | str, dict[str, Any]] = {
        200: {"content": dict.fromkeys(types, schema), "description": "Media"},
        304: {"description": "The client has this version"},
        404: {"model": ErrorBody, "description": "No such video, or one without a file"},
        409: {"model": ErrorBody, "description": "The file changed since it was indexed"},
        410: {"model": ErrorBody, "description": "The file is gone"},
        422: {"model": ErrorBody, "description": "A value outside the video, or a damaged file"},
        429: {"model": ErrorBody, "description": "Too much is being made; see Retry-After"},
        503: {"model": ErrorBody, "description": "No process can be started, or shutting down"},
        507: {"model": ErrorBody, "description": "No room on the service's disk"},
    }
    if is_file:
        found[206] = {"content": dict.fromkeys(types, schema), "description": "A range"}
        found[416] = {"model": ErrorBody, "description": "A range behind the file's end"}
    return found


@router.get("/videos/{handle}/thumbnail", responses=_told("image/webp"), response_class=Response)
@router.head("/videos/{handle}/thumbnail", include_in_schema=False)
async def thumbnail(
    handle: Handle,
    library: Library,
    request: Request,
    start_s: Seconds = 0.0,
    time_s: Seconds | None = None,
) -> Response:
    """Return a small picture of the segment that begins at ``start_s``.

    It is the one that indexing kept; else the frame at ``time_s``, by default the segment's first.
    """
    video = await library.find(handle)
    time = start_s if time_s is None else time_s
    if video.content_sha256 is not None:
        validity = _validity(video, video.content_sha256, "thumbnail", f"{start_s:.3f}", time)
        kept = await library.stored_thumbnail(video, start_s)
        if kept is not None:
            return not_modified(request.headers, validity) or PictureResponse(
                kept, "image/webp", validity
            )
    source = await library.open(video)
    validity = _validity(video, source.tag, "thumbnail", f"{start_s:.3f}", time)
    return not_modified(request.headers, validity) or await _unless_gone(
        request, _picture(library.thumbnail(source, time), "image/webp", validity)
    )


@router.get(
    "/videos/{handle}/frame",
    responses=_told("image/jpeg", "image/png", "image/webp"),
    response_class=Response,
)
@router.head("/videos/{handle}/frame", include_in_schema=False)
async def frame(
    handle: Handle,
    library: Library,
    request: Request,
    time_s: Seconds,
    max_side: MaxSide = None,
    format: Annotated[PictureFormat, Query()] = "jpeg",  # noqa: A002 - the name in the address
) -> Response:
    """Return the frame on display at a time, upright, with square pixels. PNG loses nothing."""
    video = await library.find(handle)
    source = await library.open(video)
    validity = _validity(video, source.tag, "frame", f"{time_s:.3f}", max_side, format)
    return not_modified(request.headers, validity) or await _unless_gone(
        request,
        _picture(library.picture(source, time_s, max_side, format), f"image/{format}", validity),
    )


@router.get(
    "/videos/{handle}/frames", responses=_told(_FRAMES_TYPE, is_file=True), response_class=Response
)
@router.head("/videos/{handle}/frames", include_in_schema=False)
async def frames(
    handle: Handle,
    library: Library,
    request: Request,
    start_s: Seconds,
    end_s: Seconds,
    max_frames: Annotated[int, Query(ge=1, le=256)] = 64,
    max_side: MaxSide = None,
) -> Response:
    """Return the frames from ``start_s`` up to ``end_s``, thinned evenly to ``max_frames``.

    The body is a file of NumPy: ``frames``, uint8 RGB ``[n, height, width, 3]``, and the times
    at which they appear, ``times_s``, float64 ``[n]``.
    """
    video = await library.find(handle)
    source = await library.open(video)
    span = Span.of(start_s, end_s)
    validity = _validity(video, source.tag, "frames", span, max_frames, max_side)
    known = not_modified(request.headers, validity)
    if known is not None:
        return known
    made = library.frames(source, span, max_frames, max_side)
    return await _unless_gone(request, _file(made, request, _FRAMES_TYPE, validity))


@router.get(
    "/videos/{handle}/media",
    responses=_told("video/mp4", "application/octet-stream", is_file=True),
    response_class=Response,
)
@router.head("/videos/{handle}/media", include_in_schema=False)
async def media(handle: Handle, library: Library, request: Request) -> Response:
    """Return the video's file, whole or the range of bytes that is asked for."""
    video = await library.find(handle)
    source = await library.open(video)
    validity = _validity(video, source.tag)
    return not_modified(request.headers, validity) or OpenFileResponse(
        source.content, request.headers, media_type_of(source.content), validity
    )


@router.get(
    "/videos/{handle}/playable", responses=_told("video/mp4", is_file=True), response_class=Response
)
@router.head("/videos/{handle}/playable", include_in_schema=False)
async def playable(
    handle: Handle,
    library: Library,
    request: Request,
    start_s: Seconds = 0.0,
    end_s: Seconds | None = None,
    pad_s: Padding = 0.0,
) -> Response:
    """Return a moment as H.264 and AAC, which every browser plays, with ranges.

    The file's time 0 is ``X-Start-S`` of the video, and it ends at ``X-End-S``: where the video
    does, or after the longest moment that is made. Equal requests share one file.
    """
    video = await library.find(handle)
    source = await library.open(video)
    span = Span.of(start_s, end_s, pad_s)
    made = library.cut(source, span, ending=".mp4", quality="playback")
    validity = _validity(video, source.tag, "playable", span)
    return await _unless_gone(request, _file(made, request, "video/mp4", validity, mode="exact"))


@router.get(
    "/videos/{handle}/cut",
    responses=_told(*CONTAINER_TYPES.values(), is_file=True),
    response_class=Response,
)
@router.head("/videos/{handle}/cut", include_in_schema=False)
async def cut(
    handle: Handle,
    library: Library,
    request: Request,
    start_s: Seconds,
    end_s: Seconds,
    mode: CutMode = "exact",
    pad_s: Padding = 0.0,
    container: Container | None = None,
) -> Response:
    """Return some seconds of a video as a file to keep.

    ``exact`` encodes them anew; ``copy`` keeps the streams, and begins at the key frame before.
    ``X-Start-S`` and ``X-End-S`` tell where the file begins and ends in the video.
    ``X-Warnings`` is a JSON list. By default an exact cut is MP4, and a copy what the file is.
    """
    video = await library.find(handle)
    source = await library.open(video)
    ending = f".{container}" if container else ".mp4"
    if container is None and mode == "copy":
        ending = container_like(media_type_of(source.content))
    span = Span.of(start_s, end_s, pad_s)
    made = library.cut(source, span, ending=ending, mode=mode)
    validity = _validity(video, source.tag, "cut", span, ending, mode)
    times = "-".join(time_text(each, 1).replace(":", ".") for each in (start_s, end_s))
    return await _unless_gone(
        request,
        _file(
            made,
            request,
            CONTAINER_TYPES[ending],
            validity,
            mode=mode,
            filename=f"{stem_of(video)}_{times}{ending}",
        ),
    )


def _validity(video: MediaVideo, tag: str, *asked: object) -> Validity:
    """Tag what is made of the bytes that ``tag`` stands for, by what is asked for."""
    etag = cache_key(tag, *asked)[:32] if asked else tag
    # Only such an address can never stand for other bytes.
    return Validity(f'"{etag}"', is_immutable=tag == video.content_sha256 == video.handle)


async def _picture(
    made: Coroutine[Any, Any, bytes], media_type: str, validity: Validity
) -> Response:
    return PictureResponse(await made, media_type, validity)


async def _file(
    made: Coroutine[Any, Any, CachedFile],
    request: Request,
    media_type: str,
    validity: Validity,
    *,
    mode: CutMode | None = None,
    filename: str | None = None,
) -> Response:
    found = await made
    facts, told = found.facts, {}
    if version := facts.get("version"):
        # A moment that is made anew may have other bytes, so it gets another tag.
        validity = Validity(f'{validity.etag[:-1]}-{version}"', validity.is_immutable)
    if mode is not None:
        told = {
            "X-Start-S": f"{facts['start_s']:.6f}",
            "X-End-S": f"{facts['end_s']:.6f}",
            "X-Has-Sound": str(facts["has_sound"]).lower(),
            "X-Mode": mode,
            "X-Warnings": json.dumps(facts["warnings"]),
        }
    return not_modified(request.headers, validity) or OpenFileResponse(
        found.content, request.headers, media_type, validity, headers=told, filename=filename
    )


async def _unless_gone(request: Request, made: Coroutine[Any, Any, Response]) -> Response:
    """Await a response, and give up as soon as the client goes away."""
    making = asyncio.ensure_future(made)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if making.done():
            return making.result()
        return Response(status_code=CLIENT_GONE)
    finally:
        await _end(making, leaving)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks until they end, since Python 3.11 swallows a cancellation of ``wait_for``."""
    while not all(task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=0.05)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio logs errors that nobody looked at


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
