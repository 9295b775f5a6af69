"""Images and videos that are searched by: received, decoded in a worker process, and removed.

They grow in ``queries`` below the data folder and leave it with their request, whatever happens.
What a killed service left there is removed at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastapi import Request

from xclip_deploy.errors import InvalidArgumentError, VideoError, VideoReadError
from xclip_deploy.runtime.decoding import DecoderPool
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import UPLOADS, VideoFrames, VideoReading
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.file_names import safe_name
from xclip_deploy.service.multipart import MultipartForm, PartData, PartEnd, PartStart
from xclip_deploy.service.partial_files import PartialFile
from xclip_deploy.service.settings import ServiceSettings

MAX_FIELD_BYTES = 1 << 20
"""Largest text in a form; a query bank of 1,000 texts is the longest that is of use."""
MAX_FILES = 16
"""Most videos that are embedded by one request."""
_MAX_WAITING = 32
_RESERVED_BYTES = 64 << 20
_THIN = 2.0
"""Factor by which a video has more frames to sample than are seen, from which on it is thin."""
_IMAGES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


@dataclass(eq=False)
class ReceivedQuery:
    """A form that has arrived."""

    files: list[Path] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


class QueryFiles:
    """The files that a service is asked with. Its methods run in one event loop."""

    def __init__(self, settings: ServiceSettings, reading: VideoReading) -> None:
        """Make the folder anew. ``reading``: how the model reads videos. Raises OSError."""
        self._settings = settings
        self._folder = (settings.data / "queries").absolute()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        policy = replace(UPLOADS, max_duration_s=settings.max_duration_s)
        self._reading = replace(reading, policy=policy)
        self._turns = asyncio.Semaphore(settings.workers or usable_cores())
        self._num_waiting = 0

    def temporary(self, ending: str) -> Path:
        """Return a path in the folder for a file that its user removes."""
        return self._folder / f"{uuid.uuid4().hex}{ending}"

    @asynccontextmanager
    async def receiving(
        self, request: Request, names: frozenset[str], max_files: int = 1
    ) -> AsyncIterator[ReceivedQuery]:
        """Receive a form with one to ``max_files`` parts ``file`` and the text fields ``names``.

        Raises Refusal for too many or too large files, too many requests, no room or another type
        of content, and InvalidArgumentError for a malformed form.
        """
        form = MultipartForm(request.headers.get("content-type", ""))
        if self._num_waiting >= _MAX_WAITING:
            raise Refusal(
                429,
                "TooManyWaiting",
                f"{_MAX_WAITING} searches by files are in work, the most at a time; try again",
                retry_after_s=2,
            )
        self._num_waiting += 1
        parts: list[PartialFile] = []
        try:
            yield await self._receive(form, request, names, max_files, parts)
        finally:
            self._num_waiting -= 1
            # The thread goes on where this task is cancelled.
            await asyncio.shield(asyncio.to_thread(_discard, parts))

    async def _receive(
        self,
        form: MultipartForm,
        request: Request,
        names: frozenset[str],
        max_files: int,
        parts: list[PartialFile],
    ) -> ReceivedQuery:
        received = ReceivedQuery()
        current: PartialFile | str = ""
        values: dict[str, bytearray] = {}
        async for chunk in request.stream():
            for event in form.feed(chunk):
                if isinstance(event, PartStart):
                    current = self._begin(event, names, max_files, received, parts, values)
                elif isinstance(event, PartData):
                    if isinstance(current, str):
                        values[current] += event.content
                        if len(values[current]) > MAX_FIELD_BYTES:
                            raise _too_large(f"the part {current!r}", MAX_FIELD_BYTES)
                    elif current.add(event.content):
                        await _written(current.flush)
                elif isinstance(event, PartEnd) and isinstance(current, PartialFile):
                    await _written(current.finish)
                    if not current.size_bytes:
                        raise InvalidArgumentError(
                            f"{current.name}: is empty (0 bytes); expected an image or a video"
                        )
        form.end()
        if not received.files:
            raise InvalidArgumentError(
                "the form holds no part 'file'; expected an image or a video"
            )
        received.fields = {name: _decoded(name, content) for name, content in values.items()}
        return received

    def _begin(
        self,
        part: PartStart,
        names: frozenset[str],
        max_files: int,
        received: ReceivedQuery,
        parts: list[PartialFile],
        values: dict[str, bytearray],
    ) -> PartialFile | str:
        if part.name in names:
            if part.name in values:
                raise InvalidArgumentError(f"the form has the part {part.name!r} twice")
            values[part.name] = bytearray()
            return part.name
        if part.name != "file":
            expected = ", ".join(sorted({"file", *names}))
            raise InvalidArgumentError(
                f"the form has a part {part.name!r:.50}; expected some of {expected}"
            )
        if len(parts) == max_files:
            raise Refusal(413, "TooManyFiles", f"the form has more files than {max_files}")
        name = safe_name(part.filename or "file")
        path = self.temporary(Path(name).suffix[:16])
        most = self._settings.max_query_bytes
        file = PartialFile(path, name, most, self._check_room, lambda _count: None)
        parts.append(file)
        received.files.append(path)
        return file

    def _check_room(self, count: int) -> None:
        if shutil.disk_usage(self._folder).free < count + _RESERVED_BYTES:
            raise _no_room()

    async def decode(self, path: Path, *, is_image: bool) -> tuple[VideoFrames, tuple[str, ...]]:
        """Decode a received file in a worker process; return frames and warnings.

        Raises VideoReadError for a file that cannot be read, Refusal (415) for no image.
        """
        if is_image:
            await asyncio.to_thread(_check_image, path)
        async with self._turns:
            frames = await asyncio.to_thread(self._decode, path, is_image=is_image)
        warnings = [_without_path(each, path) for each in frames.warnings]
        thin = None if is_image else _thinning(frames, self._reading)
        return frames, (*warnings, *([] if thin is None else [thin]))

    def _decode(self, path: Path, *, is_image: bool) -> VideoFrames:
        timeout_s = self._settings.timeout_s
        # Decoders go back to a shelf, so that the next pool takes one that runs.
        with DecoderPool[None](self._reading, workers=1, timeout_s=timeout_s) as pool:
            pool.submit(None, path, is_image=is_image)
            taken = pool.take()
        assert taken is not None
        outcome = taken[1]
        if isinstance(outcome, VideoError):
            raise VideoReadError(_without_path(str(outcome), path)) from outcome
        assert isinstance(outcome.frames, VideoFrames)
        return outcome.frames


def _check_image(path: Path) -> None:
    """Refuse a file that does not begin as an image of a usual kind. Raises Refusal (415)."""
    with path.open("rb") as file:
        head = file.read(16)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_avif = head[4:12] in (b"ftypavif", b"ftypavis")
    if not (is_webp or is_avif or any(head.startswith(magic) for magic in _IMAGES)):
        known = ", ".join(sorted({*_IMAGES.values(), "WebP", "AVIF"}))
        raise Refusal(415, "UnsupportedMediaType", f"the file is no image; expected {known}")


def _thinning(frames: VideoFrames, reading: VideoReading) -> str | None:
    count = len(frames.frames)
    if frames.duration_s * reading.sampling.frames_per_second <= _THIN * count:
        return None
    return (
        f"the video's {time_text(frames.duration_s)} are seen in {count} frames; what lies between "
        "them is not searched by: send a shorter part"
    )


def _without_path(message: str, path: Path) -> str:
    """Return a message about a received file without its temporary name."""
    return message.replace(str(path), "the file").replace(path.name, "the file")


def _decoded(name: str, content: bytearray) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the part {name!r} is no UTF-8 text") from error


def _discard(parts: Sequence[PartialFile]) -> None:
    for part in parts:
        part.discard()


async def _written(write: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(write)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room() from error
        raise


def _no_room() -> Refusal:
    return Refusal(507, "NoRoom", "the service's disk is full; expected room, so free some")


def _too_large(what: str, most: int) -> Refusal:
    return Refusal(413, "TooLarge", f"{what} is larger than {most} bytes")


def text_of(fields: Mapping[str, str], name: str) -> str | None:
    """Return a field of a form, None for one that is missing or empty."""
    return fields.get(name) or None
