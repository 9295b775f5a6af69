"""Media of the gallery's videos: pictures, frames, cuts, and moments that every browser plays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import anyio.to_thread

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery.thumbnails import THUMBNAIL_SIDE, ThumbnailStore, thumbnail_key
from xclip_deploy.runtime.media import CutMode, CutQuality
from xclip_deploy.runtime.moments.worker import PictureFormat
from xclip_deploy.runtime.resources import usable_cores, usable_memory_bytes
from xclip_deploy.service.errors import redacted
from xclip_deploy.service.media.cache import CachedFile, MediaCache, cache_key
from xclip_deploy.service.media.files import MediaLookup, MediaVideo, SourceFile, open_source
from xclip_deploy.service.media.lanes import Flights, Lane, Workers
from xclip_deploy.service.media.process import Answer, Starter, worker_command
from xclip_deploy.service.metrics import ServiceMetrics
from xclip_deploy.service.served import ServedGallery
from xclip_deploy.service.settings import ServiceSettings

T = TypeVar("T")
_SETTINGS_VERSION = 1
"""Grows with every change to how moments are encoded, so that the cache forgets the old ones."""
_MAX_THUMBNAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class MediaLimits:
    """Bounds of what requests for media may cost."""

    pictures: int
    """Most pictures and lists of frames that are read at a time."""
    encodings: int
    """Most cuts and playable moments that are made at a time."""
    memory_bytes: int
    """Most memory of one process."""
    cache_bytes: int
    """Most bytes of what is kept."""
    timeout_s: float
    """Longest time for a picture, seconds; an encoding has more by its length."""
    pictures_waiting: int = 128
    encodings_waiting: int = 8
    longest_s: float = 600.0
    """Longest moment with its padding, seconds."""
    max_file_bytes: int = 2 << 30
    """Largest file that is made."""
    max_frames_bytes: int = 512 << 20
    """Largest list of frames."""

    @classmethod
    def of(cls, settings: ServiceSettings) -> MediaLimits:
        """Derive bounds from a service's settings and the machine."""
        cores = settings.workers or usable_cores()
        return cls(
            pictures=max(2, cores),
            encodings=max(1, cores // 2),
            memory_bytes=max(2 << 30, min(6 << 30, usable_memory_bytes() // 2)),
            cache_bytes=settings.cache_bytes,
            timeout_s=settings.timeout_s,
        )


@dataclass(frozen=True)
class Span:
    """Seconds of a video that are asked for, rounded to milliseconds."""

    start_s: float
    end_s: float | None
    """None for the video's end, or as much as is allowed."""
    pad_s: float = 0.0

    @classmethod
    def of(cls, start_s: float, end_s: float | None, pad_s: float = 0.0) -> Span:
        """Round times, so that equal requests are found to be equal."""
        return cls(round(start_s, 3), None if end_s is None else round(end_s, 3), round(pad_s, 3))

    def fields(self) -> dict[str, float | None]:
        """Return the fields of a task."""
        return {"start_s": self.start_s, "end_s": self.end_s, "pad_s": self.pad_s}

    def checked(self, longest_s: float) -> Span:
        """Return the span. Raises InvalidArgumentError if it is empty or too long."""
        if self.end_s is not None:
            length_s = self.end_s - self.start_s
            if not 0 < length_s <= longest_s - 2 * self.pad_s + 1e-6:
                raise InvalidArgumentError(
                    f"the range from {self.start_s:g} s to {self.end_s:g} s has a length of "
                    f"{length_s:g} s and {self.pad_s:g} s of padding at both ends; expected more "
                    f"than 0 s, and {longest_s:g} s at most altogether"
                )
        return self


class MediaLibrary:
    """Media of a gallery's videos. Its methods run in the loop of the service."""

    def __init__(
        self,
        settings: ServiceSettings,
        served: ServedGallery,
        metrics: ServiceMetrics | None = None,
        *,
        limits: MediaLimits | None = None,
        command: tuple[str, ...] | None = None,
    ) -> None:
        """Open the cache below the data folder. Processes start with the first requests.

        ``limits`` and ``command`` replace the defaults, for tests. Raises OSError where the
        cache cannot be made, and InvalidArgumentError where no Python is found.
        """
        self.limits = limits or MediaLimits.of(settings)
        self._metrics = metrics
        self._lookup = MediaLookup(served.records)
        self._uploads = (settings.data / "uploads").absolute()
        self.cache = MediaCache(settings.data / "media", self.limits.cache_bytes)
        starter = Starter(command or worker_command(), self.limits.memory_bytes)
        self.workers = Workers(starter, self.limits.pictures + self.limits.encodings)
        self.pictures = Lane(
            "requests for pictures", self.limits.pictures, self.limits.pictures_waiting, 2
        )
        self.encodings = Lane("encodings", self.limits.encodings, self.limits.encodings_waiting, 10)
        self.flights: Flights[Any] = Flights()

    async def find(self, name: str) -> MediaVideo:
        """Return the video with an id or handle. Raises GalleryError."""
        return await self._run(self._lookup.find, name)

    async def open(self, video: MediaVideo) -> SourceFile:
        """Open the file of a video. Raises MomentSourceError, Refusal."""
        return await self._run(open_source, video)

    async def stored_thumbnail(self, video: MediaVideo, start_s: float) -> bytes | None:
        """Return the WebP that indexing kept of the segment at ``start_s``; None without one."""
        if video.content_sha256 is None or video.thumbnails is None:
            return None
        key = thumbnail_key(video.content_sha256, start_s)
        return await self._run(_stored, ThumbnailStore(video.thumbnails), key)

    async def thumbnail(self, source: SourceFile, time_s: float) -> bytes:
        """Make a thumbnail of the frame at a time, WebP, or return the one that was made before.

        Raises VideoError, InvalidArgumentError, Refusal.
        """
        key = cache_key("thumbnail", _SETTINGS_VERSION, source.tag, f"{time_s:.3f}")
        kept = await self._run(self.cache.open, key)
        if kept is not None:
            return kept.content.read(0, kept.content.status.st_size)
        content = await self.picture(source, time_s, THUMBNAIL_SIDE, "webp")
        await self._run(self._keep, key, content)
        return content

    async def picture(
        self, source: SourceFile, time_s: float, max_side: int | None, form: PictureFormat
    ) -> bytes:
        """Return the frame on display at a time as a picture.

        Raises VideoError, InvalidArgumentError, Refusal.
        """
        request = {
            **self._request(source),
            "task": "picture",
            "time_s": round(time_s, 3),
            "max_side": max_side,
            "format": form,
        }
        answer = await self.flights.join(
            tuple(request.values()), lambda: self._ask(self.pictures, "picture", request)
        )
        content: bytes = answer.content
        return content

    async def frames(
        self, source: SourceFile, span: Span, max_frames: int, max_side: int | None
    ) -> CachedFile:
        """Return an ``.npz`` file of ``frames`` ``[n, h, w, 3]`` and ``times_s`` ``[n]``.

        Raises VideoError, InvalidArgumentError, Refusal.
        """
        span = span.checked(self.limits.longest_s)
        request = {
            **self._request(source),
            **span.fields(),
            "task": "frames",
            "max_frames": max_frames,
            "max_side": max_side,
            "max_bytes": self.limits.max_frames_bytes,
            "longest_s": self.limits.longest_s,
        }

        async def make() -> CachedFile:
            return await self._made(self.pictures, "frames", request, "frames.npz", None)

        found: CachedFile = await self.flights.join(tuple(request.values()), make)
        return found

    async def cut(
        self,
        source: SourceFile,
        span: Span,
        *,
        ending: str,
        mode: CutMode = "exact",
        quality: CutQuality = "full",
    ) -> CachedFile:
        """Return some seconds of a video as a file, made now or before.

        Its facts are ``start_s``, ``end_s``, ``has_sound`` and ``warnings``. A moment for
        playback ends where the video does; other ranges must lie within it.

        Raises VideoError, InvalidArgumentError, Refusal.
        """
        span = span.checked(self.limits.longest_s)
        asked = (*vars(span).values(), ending, mode, quality)
        key = cache_key("cut", _SETTINGS_VERSION, version("av"), source.tag, *asked)
        kept = await self._run(self.cache.open, key)
        if kept is not None:
            return kept
        request = {
            **self._request(source),
            **span.fields(),
            "task": "cut",
            "mode": mode,
            "quality": quality,
            "is_lenient": quality == "playback",
            "max_bytes": self.limits.max_file_bytes,
            "longest_s": self.limits.longest_s,
        }
        stage = "transcode" if quality == "playback" else "cut"

        async def make() -> CachedFile:
            return await self._made(self.encodings, stage, request, f"moment{ending}", key)

        found: CachedFile = await self.flights.join(key, make)
        return found

    async def drain(self) -> None:
        """Cancel what is being made, and wait until the processes are gone."""
        await self.flights.cancel_all()

    def close(self) -> None:
        """End the processes, and remove what is unfinished."""
        self.workers.close()
        self._lookup.forget()
        self.cache.close()

    def _request(self, source: SourceFile) -> dict[str, Any]:
        """Return the fields of a task that name a file, and whether a stranger sent it."""
        is_upload = Path(source.file.path).is_relative_to(self._uploads)
        return {**source.request(), "is_upload": is_upload}

    async def _made(
        self, lane: Lane, stage: str, request: dict[str, Any], name: str, key: str | None
    ) -> CachedFile:
        """Have a process write a file. Keep it under ``key``, or only as long as it is read."""
        async with lane.turn():
            with self.cache.unfinished(name) as path:
                whole = {**request, "out": str(path)}
                try:
                    answer = await self._asked(stage, whole)
                except InvalidArgumentError as error:
                    if getattr(error.__cause__, "errno", None) != errno.EFBIG:
                        raise
                    raise InvalidArgumentError(
                        f"the result would be larger than {request['max_bytes']:,} bytes; "
                        "expected a shorter range"
                    ) from None
                facts = {**answer.fields, "version": token_hex(4)}
                facts["warnings"] = [redacted(text) for text in facts.get("warnings", ())]
                return await self._run(self.cache.put, key, path, facts)

    async def _ask(self, lane: Lane, stage: str, request: dict[str, Any]) -> Answer:
        async with lane.turn():
            return await self._asked(stage, request)

    async def _asked(self, stage: str, request: dict[str, Any]) -> Answer:
        timeout_s = self.limits.timeout_s
        if request["task"] != "picture":
            end_s = request["end_s"]
            length_s = self.limits.longest_s if end_s is None else end_s - request["start_s"]
            timeout_s += 4 * (length_s + 2 * request["pad_s"])
        with self._timed(f"media_{stage}"):
            return await self.workers.ask(request, timeout_s)

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return nullcontext() if self._metrics is None else self._metrics.time(stage)

    def _keep(self, key: str, content: bytes) -> None:
        """Keep a picture; where there is no room it is made again next time."""
        try:
            with self.cache.unfinished("picture") as path:
                path.write_bytes(content)
                self.cache.put(key, path, {})
        except OSError:
            return

    async def _run(self, function: Callable[..., T], *args: Any) -> T:  # noqa: ANN401
        return await anyio.to_thread.run_sync(partial(function, *args))


def _stored(store: ThumbnailStore, key: str) -> bytes | None:
    path: Path | None = store.get(key)
    try:
        content = b"" if path is None else path.read_bytes()
    except OSError:
        return None
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content if is_webp and len(content) <= _MAX_THUMBNAIL_BYTES else None
