"""Pictures, frames and cuts of a hit, over HTTP."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.client.answers import Head
from xclip_deploy.client.exchange import Flow, Request, Work, address_of, chunks_of, exchange
from xclip_deploy.client.reading import bytes_of, check_kind, picture_of, warnings_of
from xclip_deploy.client.settings import Rules
from xclip_deploy.client.videos import address_name
from xclip_deploy.errors import ClosedError, InvalidArgumentError, ServiceError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_choice,
    as_instance,
    as_number,
    as_path,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.media import Cut, CutMode
from xclip_deploy.runtime.results import SearchResult

Frames = tuple[NDArray[np.uint8], NDArray[np.float64]]
Run = Callable[[Flow[Any]], Any]
_PICTURES = ("image/webp", "image/jpeg", "image/png")
_ARCHIVES = ("application/x-npz", "application/octet-stream", "application/zip")
_CONTAINERS = {
    ".mp4": ("mp4", "video/mp4"),
    ".m4v": ("mp4", "video/mp4"),
    ".mov": ("mov", "video/quicktime"),
    ".mkv": ("mkv", "video/x-matroska"),
    ".webm": ("webm", "video/webm"),
}
"""The service's name of a container and its media type, by the ending of a file's name."""


@dataclass(frozen=True)
class RemoteMedia:
    """The file of a hit's video, at the service. A pickled one cannot be used any more."""

    handle: str
    """Name of the video in addresses."""
    rules: Rules | None = field(default=None, repr=False, compare=False)
    run: Run | None = field(default=None, repr=False, compare=False)

    def thumbnail(self, start_s: float, time_s: float) -> NDArray[np.uint8]:
        """Ask for a small picture of a segment: uint8 RGB [height, width, 3]."""
        rules, run = self._connection()
        picture: NDArray[np.uint8] = run(thumbnail(rules, self.handle, start_s, time_s))
        return picture

    def frames(self, start_s: float, end_s: float, max_frames: int) -> Frames:
        """Ask for frames uint8 [n, height, width, 3] and their times."""
        rules, run = self._connection()
        found: Frames = run(frames(rules, self.handle, start_s, end_s, max_frames))
        return found

    def cut(
        self,
        start_s: float,
        end_s: float,
        out: str | os.PathLike[str],
        mode: CutMode,
        pad_s: float,
        *,
        overwrite: bool,
    ) -> Cut:
        """Let the service cut, and download the file."""
        rules, run = self._connection()
        flow = cut(rules, self.handle, (start_s, end_s), out, mode, pad_s, overwrite=overwrite)
        made: Cut = run(flow)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteMedia, (self.handle,)

    def _connection(self) -> tuple[Rules, Run]:
        if self.rules is None or self.run is None:
            raise ClosedError("this hit was copied away from its client; search again")
        return self.rules, self.run


@dataclass(frozen=True)
class _FlowMedia:
    """Media whose methods return flows, for the coroutines of an AsyncClient."""

    handle: str
    rules: Rules

    def thumbnail(self, start_s: float, time_s: float) -> Any:  # noqa: ANN401 - a flow
        return thumbnail(self.rules, self.handle, start_s, time_s)

    def frames(self, start_s: float, end_s: float, max_frames: int) -> Any:  # noqa: ANN401
        return frames(self.rules, self.handle, start_s, end_s, max_frames)

    def cut(
        self,
        start_s: float,
        end_s: float,
        out: str | os.PathLike[str],
        mode: CutMode,
        pad_s: float,
        *,
        overwrite: bool,
    ) -> Any:  # noqa: ANN401
        span_s = (start_s, end_s)
        return cut(self.rules, self.handle, span_s, out, mode, pad_s, overwrite=overwrite)


def flows_of(rules: Rules, hit: SearchResult) -> SearchResult:
    """Return a hit whose ``thumbnail``, ``frames`` and ``cut`` return flows."""
    as_instance("hit", hit, SearchResult, "a hit of a search")
    handle = hit.media.handle if isinstance(hit.media, RemoteMedia) else hit.id
    return replace(hit, media=_FlowMedia(handle, rules))


def thumbnail(rules: Rules, handle: str, start_s: float, time_s: float) -> Flow[NDArray[np.uint8]]:
    """Ask for the thumbnail of the segment at ``start_s``, or the frame at ``time_s``."""
    params = [("start_s", repr(start_s)), ("time_s", repr(time_s))]
    request = Request("GET", address_of("videos", address_name(handle), "thumbnail"), params)
    _, content = yield from exchange(request, rules, bytes_of(rules, *_PICTURES))
    return picture_of(content)


def frames(
    rules: Rules, handle: str, start_s: float, end_s: float, max_frames: int
) -> Flow[Frames]:
    """Ask for the frames from ``start_s`` to ``end_s``, ``max_frames`` at most."""
    count = as_whole_number("max_frames", max_frames, 1)
    params = [("start_s", repr(start_s)), ("end_s", repr(end_s)), ("max_frames", str(count))]
    request = Request("GET", address_of("videos", address_name(handle), "frames"), params)
    _, content = yield from exchange(request, rules, bytes_of(rules, *_ARCHIVES))
    return _frames_of(content, rules.settings.max_response_bytes)


def cut(
    rules: Rules,
    handle: str,
    span_s: tuple[float, float],
    out: PathName,
    mode: CutMode,
    pad_s: float,
    *,
    overwrite: bool,
) -> Flow[Cut]:
    """Let the service cut some seconds, and write them to ``out``, whole or not at all."""
    as_choice("mode", mode, CutMode)
    pad = as_number("pad_s", pad_s, 0)
    target = as_path("out", out)
    _check_target(target, overwrite=as_truth("overwrite", overwrite))
    params = [("start_s", repr(span_s[0])), ("end_s", repr(span_s[1]))]
    params += [("mode", mode), ("pad_s", repr(pad))]
    params.append(("container", _CONTAINERS[target.suffix.lower()][0]))
    request = Request("GET", address_of("videos", address_name(handle), "cut"), params)
    try:
        with ExitStack() as stack:
            partial_path = stack.enter_context(replaced_file(target))
            read = partial(_download, rules=rules, path=partial_path)
            made: Cut = yield from exchange(request, rules, partial(read, target=target))
            if not overwrite and os.path.lexists(target):
                raise _exists(target)
            yield Work(stack.pop_all().close)
    except OSError as error:
        raise InvalidArgumentError(
            f"{target} cannot be written: {error.strerror or error}"
        ) from error
    return made


def _download(head: Head, until: float, *, rules: Rules, path: Path, target: Path) -> Flow[Cut]:
    """Write an answer to a file. It begins anew for every attempt."""
    check_kind(head, (_CONTAINERS[target.suffix.lower()][1],))
    if head.length is None and "chunked" not in head.headers.get("transfer-encoding", ""):
        raise ServiceError("the service sent a file of no known length; expected a whole one")
    made = _cut_of(head, target)
    most = rules.settings.max_download_bytes
    with path.open("wb") as file:
        yield from chunks_of(head, rules, until, most, partial(_writing, file))
    return made


def _writing(file: BinaryIO, chunk: bytes) -> Work:
    return Work(partial(file.write, chunk))


def _cut_of(head: Head, target: Path) -> Cut:
    """Return what the headers tell of the file. Raises ServiceError where they do not."""
    try:
        mode: CutMode = as_choice("X-Mode", head.headers.get("x-mode"), CutMode)
        return Cut(
            target,
            as_number("X-Start-S", float(head.headers["x-start-s"])),
            as_number("X-End-S", float(head.headers["x-end-s"])),
            {"true": True, "false": False}[head.headers["x-has-sound"].lower()],
            mode,
            warnings_of(head),
        )
    except (KeyError, ValueError) as error:
        raise ServiceError(
            "the service sent a file without its start and end; expected a service of the "
            "client's version"
        ) from error


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix.lower() not in _CONTAINERS:
        raise InvalidArgumentError(
            f"{target}: has no ending that the service writes; expected one of "
            f"{', '.join(_CONTAINERS)}"
        )
    if target.is_dir():
        raise InvalidArgumentError(f"out is the folder {target}; expected the name of a file")
    if os.path.lexists(target) and not overwrite:
        raise _exists(target)
    if not target.absolute().parent.is_dir():
        raise InvalidArgumentError(f"{target}: there is no folder {target.parent}; make it first")


def _exists(target: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{target} exists; expected a new name, or overwrite=True")


def _frames_of(content: bytes, most: int) -> Frames:
    """Read ``frames`` and ``times_s`` from an .npz archive. Raises ServiceError."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > most:
                raise ValueError(f"its arrays take {size:,} bytes; expected {most:,} at most")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            pictures, times = arrays["frames"], arrays["times_s"]
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != len(times):
            raise ValueError("its arrays have other types or shapes")
        return pictures, times.astype(np.float64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ServiceError(f"the service sent no frames: {error}") from error
