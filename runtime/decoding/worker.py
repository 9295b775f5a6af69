"""The program of a decoder process. It may crash or hang without harm to its parent.

``python -m xclip_deploy.runtime.decoding.worker PARENT`` reads requests from standard input and
writes answers to standard output. For each request
``{path, reading, segmentation, is_image}`` it sends

- ``{hashing}`` about once a second while it hashes a long file;
- ``{content_sha256, size_bytes, modified_ns}``, to which the parent replies ``{decode}``;
- if ``decode`` is true, ``{count, …}``, followed by the frames;
- or, for a long video, ``{long, duration_s}``, then ``{block, …}`` followed by frames for each
  block, ``{decoding}`` about once a second without one, and at the end ``{ended, …}``;
- or, at any point, ``{error, changed}``, which says what was wrong with the video.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.decoding.channel import (
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
)
from xclip_deploy.runtime.video import (
    NO_POLICY,
    LongVideo,
    Segmentation,
    VideoFrames,
    VideoReading,
    current_policy,
    limited_memory,
    read_blocks,
    read_frames,
    read_image,
)

IDLE_S = 60.0
"""Seconds without work after which a decoder ends."""
_CHUNK_BYTES = 1 << 20
_SIGN_OF_LIFE_S = 1.0
_PR_SET_PDEATHSIG = 1
_PIPE_BYTES = 1 << 20


def main() -> None:
    """Answer requests until there are no more."""
    die_with(int(sys.argv[1]))
    channel = take_over_standard_streams()
    with contextlib.suppress(ChannelClosedError, ChannelTimeoutError):
        channel.send({"ready": os.getpid()})
        while True:
            _answer(channel, channel.receive(IDLE_S))


def _answer(channel: Channel, request: dict[str, Any]) -> None:
    path = request["path"]
    try:
        reading = VideoReading.from_dict(request["reading"])
        segmentation = Segmentation.from_text(request["segmentation"])
        policy = reading.policy or NO_POLICY
        with policy.enforced(), limited_memory(policy.memory_bytes):
            policy.check_place(path)
            _read(channel, Path(path), reading, segmentation, is_image=request["is_image"])
    except VideoError as error:
        channel.send({"error": str(error)})
    except OSError as error:
        channel.send({"error": f"{path}: cannot be read: {error.strerror or error}"})
    except MemoryError:
        channel.send({"error": f"{path}: does not fit into memory"})
    except (ChannelClosedError, ChannelTimeoutError):
        raise
    except Exception as error:  # noqa: BLE001 - a library's mistake costs this video alone
        said = " ".join(str(error).split())[:300]
        channel.send({"error": f"{path}: cannot be read: {type(error).__name__}: {said}"})


def _read(
    channel: Channel,
    path: Path,
    reading: VideoReading,
    segmentation: Segmentation,
    *,
    is_image: bool,
) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        read_frames(path, reading)  # raises the error that says what is wrong
    before = path.stat()
    content_sha256 = _hash(channel, path)
    if _has_changed(channel, path, before):
        return
    channel.send(
        {
            "content_sha256": content_sha256,
            "size_bytes": before.st_size,
            "modified_ns": before.st_mtime_ns,
        }
    )
    if not channel.receive()["decode"]:
        return
    alive = _Pulse(channel)
    video: VideoFrames | LongVideo
    if is_image:
        video = read_image(path, reading.image_size)
    else:
        video = read_blocks(path, reading, segmentation, alive)
    if isinstance(video, LongVideo):
        _stream(channel, path, before, video, alive)
    elif not _has_changed(channel, path, before):
        channel.send(_header(video), video.frames)


def _stream(
    channel: Channel, path: Path, before: os.stat_result, video: LongVideo, alive: _Pulse
) -> None:
    """Send a long video block by block. A full pipe holds the decoder up until there is room."""
    if _has_changed(channel, path, before):
        return
    channel.send({"long": True, "duration_s": video.duration_s})
    for block in video.blocks(alive):
        # The look at the file is cheap, and spares hours in vain.
        if _has_changed(channel, path, before):
            return
        header = {
            "block": len(block.frames),
            "ticks": block.ticks.tolist(),
            "times_s": block.times_s.tolist(),
            "gaps": block.gaps,
            "cuts": block.cuts,
        }
        channel.send(header, block.frames)
        alive.rest()
    if not _has_changed(channel, path, before):
        channel.send({"ended": True, "warnings": video.warnings, "gaps": video.gaps})


class _Pulse:
    """Signs of life, about one a second, while a library that could hang goes on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.rest()

    def rest(self) -> None:
        """Count the second from now, because something else was sent."""
        self._spoke = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._spoke > _SIGN_OF_LIFE_S:
            self._channel.send({"decoding": True})
            self.rest()


def _header(frames: VideoFrames) -> dict[str, Any]:
    return {
        "count": len(frames.frames),
        "times_s": frames.times_s.tolist(),
        "frame_numbers": frames.frame_numbers.tolist(),
        "duration_s": frames.duration_s,
        "frame_rate": frames.frame_rate,
        "sampled_by": frames.sampled_by,
        "warnings": list(frames.warnings),
    }


def _hash(channel: Channel, path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    spoke = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            digest.update(view[:count])
            if time.monotonic() - spoke > _SIGN_OF_LIFE_S:
                channel.send({"hashing": True})
                spoke = time.monotonic()
    return digest.hexdigest()


def _has_changed(channel: Channel, path: Path, before: os.stat_result) -> bool:
    current_policy().check_place(path)
    after = path.stat()
    # Behind a link that was put in place meanwhile lies another file.
    names = ("st_size", "st_mtime_ns", "st_dev", "st_ino")
    if all(getattr(after, name) == getattr(before, name) for name in names):
        return False
    said = f"{path}: changed while it was read; run the command again when it is complete"
    channel.send({"error": said, "changed": True})
    return True


def die_with(parent: int) -> None:
    """End this process when its parent ends, even in the middle of a video."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent had ended before prctl was called
        sys.exit(0)


def take_over_standard_streams() -> Channel:
    """Reserve the pipes for messages, and send what libraries print to standard error."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # the user's quota of pipe memory can be exhausted
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return Channel(requests, answers)


if __name__ == "__main__":
    main()
