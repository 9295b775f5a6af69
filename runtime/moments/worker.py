"""The program of a media process. It may crash, hang or run out of memory without harm.

``python -m xclip_deploy.runtime.moments.worker MEMORY PARENT`` limits its memory to that many
bytes, reads requests from standard input and writes answers to standard output. A file with
``is_upload`` is opened under the limits of :data:`UPLOADS`. A request
``{task, path, size_bytes, modified_ns, is_upload, …}`` is answered by

- ``{bytes, …}``, followed by that many bytes of a picture, for the task ``picture``;
- ``{shape}``, for ``frames``, and ``{start_s, end_s, has_sound, warnings}``, for ``cut``, once
  the file at ``out`` is complete;
- ``{error, kind, errno}``, which says what was wrong.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from xclip_deploy.errors import InvalidArgumentError, XclipDeployError
from xclip_deploy.runtime.decoding.channel import (
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
)
from xclip_deploy.runtime.decoding.worker import die_with, take_over_standard_streams
from xclip_deploy.runtime.gallery.records import VideoFile
from xclip_deploy.runtime.moments import cut, frame_at, frames_between
from xclip_deploy.runtime.moments.source import MomentSource
from xclip_deploy.runtime.video.media_policy import NO_POLICY, UPLOADS

PictureFormat = Literal["jpeg", "png", "webp"]
IDLE_S = 60.0
"""Seconds without work after which the process ends."""
_SAVING: dict[PictureFormat, dict[str, Any]] = {
    "jpeg": {"quality": 90},
    "png": {"compress_level": 1},
    "webp": {"quality": 80, "method": 2},
}
_MAX_WARNINGS = 20
_STRANGERS = replace(UPLOADS, max_duration_s=None)
"""Policy for uploads; how long they may be was asked when they were added."""


def main() -> None:
    """Answer requests until there are no more."""
    die_with(int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = take_over_standard_streams()
    with contextlib.suppress(ChannelClosedError, ChannelTimeoutError):
        channel.send({"ready": os.getpid()})
        while True:
            answer(channel, channel.receive(IDLE_S))


def answer(channel: Channel, request: dict[str, Any]) -> None:
    """Do one task and send its answer."""
    content: bytes | None = None
    try:
        said, content = _done(request)
    except (ChannelClosedError, ChannelTimeoutError):
        raise
    except XclipDeployError as error:
        said = _failed(str(error), type(error).__name__, error)
    except MemoryError as error:
        said = _failed(f"{request['path']}: does not fit into memory", "VideoReadError", error)
    except Exception as error:  # noqa: BLE001 - a library's mistake costs this request alone
        line = " ".join(str(error).split())[:300]
        text = f"{request['path']}: cannot be read: {type(error).__name__}: {line}"
        said = _failed(text, "VideoReadError", error)
    payload = None if content is None else np.frombuffer(content, np.uint8)
    channel.send(said, payload)


def _failed(text: str, kind: str, error: BaseException) -> dict[str, Any]:
    """Describe an error; ``errno`` is that of the system's error which caused it, if one did."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__cause__
    return {"error": text, "kind": kind, "errno": getattr(cause, "errno", None)}


def _done(request: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    file = VideoFile(
        path=request["path"],
        size_bytes=request["size_bytes"],
        modified_ns=request["modified_ns"],
    )
    task = request["task"]
    with (_STRANGERS if request["is_upload"] else NO_POLICY).enforced():
        if task == "picture":
            content = _picture(file, request)
            return {"bytes": len(content)}, content
        _limit_files(int(request["max_bytes"]))
        return (_frames if task == "frames" else _cut)(file, request), None


def _picture(file: VideoFile, request: dict[str, Any]) -> bytes:
    from PIL import Image

    rgb = frame_at(file.path, request["time_s"], max_side=request["max_side"], expected=file)
    form = cast("PictureFormat", request["format"])
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, form.upper(), **_SAVING[form])
    return content.getvalue()


def _frames(file: VideoFile, request: dict[str, Any]) -> dict[str, Any]:
    _check_length(request["start_s"], request["end_s"], request)
    frames, times_s = frames_between(
        file.path,
        request["start_s"],
        request["end_s"],
        max_frames=request["max_frames"],
        max_side=request["max_side"],
        expected=file,
    )
    if frames.nbytes > request["max_bytes"] - (1 << 16):
        raise InvalidArgumentError(
            f"{len(frames)} frames take {frames.nbytes:,} bytes; expected "
            f"{request['max_bytes']:,} at most, so ask for fewer, or for a smaller max_side"
        )
    with Path(request["out"]).open("wb") as out:
        np.savez(out, frames=frames, times_s=times_s)
    return {"shape": list(frames.shape)}


def _cut(file: VideoFile, request: dict[str, Any]) -> dict[str, Any]:
    start_s, end_s, pad_s = request["start_s"], request["end_s"], request["pad_s"]
    warnings: list[str] = []
    if request["is_lenient"]:
        source = MomentSource(file.path, file)
        if end_s is None:
            end_s = min(source.length_s, start_s + request["longest_s"] - 2 * pad_s)
            if end_s < source.length_s - 0.1:
                warnings.append(f"it ends after {request['longest_s']:g} s; the video goes on")
        end_s = min(end_s, source.length_s)
        # The file that is read is the one that is cut: cut() checks its state again.
    _check_length(start_s - pad_s, end_s + pad_s, request)
    done = cut(
        file.path,
        start_s,
        end_s,
        request["out"],
        mode=request["mode"],
        pad_s=pad_s,
        quality=request["quality"],
        expected=file,
    )
    return {
        "start_s": done.start_s,
        "end_s": done.end_s,
        "has_sound": done.has_sound,
        "warnings": [*warnings, *done.warnings][:_MAX_WARNINGS],
    }


def _check_length(start_s: float, end_s: float, request: dict[str, Any]) -> None:
    longest_s = request["longest_s"]
    if end_s - start_s > longest_s + 1e-6:
        raise InvalidArgumentError(
            f"the range is {end_s - start_s:.1f} s long with its padding; expected "
            f"{longest_s:g} s at most"
        )


def _limit_files(max_bytes: int) -> None:
    """Let no file that this task writes grow beyond a size; a write beyond it raises OSError."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = max_bytes if most == resource.RLIM_INFINITY else min(max_bytes, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


if __name__ == "__main__":
    main()
