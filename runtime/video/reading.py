"""Read one video or many, with either reader."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np

from xclip_deploy.errors import (
    InvalidArgumentError,
    VideoError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime.arguments import as_instance, as_path
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video.frames import VideoFrames, VideoReader, VideoReading
from xclip_deploy.runtime.video.in_memory import take_frames
from xclip_deploy.runtime.video.media_policy import NO_POLICY
from xclip_deploy.runtime.video.sampling import FrameSampling

_Read = Callable[[Path, VideoReading], VideoFrames]
_HOW_TO_CUT = "cut out what matters, by: xclip-deploy cut VIDEO --from TIME --to TIME"


def read_video(
    path: str | os.PathLike[str],
    sampling: FrameSampling,
    image_size: int,
    *,
    reader: VideoReader = "pyav",
) -> VideoFrames:
    """Read the sampled frames of one video, upright, resized and cropped.

    A damaged file gives the frames that survive, and the result carries warnings.

    Args:
        path: A video file.
        sampling: Which frames to take.
        image_size: Side S of the frames, pixels.
        reader: Library that decodes.

    Returns:
        Frames uint8 ``[n, S, S, 3]`` with their times, ``1 <= n <= sampling.max_frames``.

    Raises:
        VideoNotFoundError: there is no file at ``path``.
        VideoReadError: the file is no video, or no frame of it can be decoded.
        MissingExtraError: the reader's package is not installed.
        InvalidArgumentError: the reader is unknown, or ``image_size`` is below 1.
    """
    as_instance("sampling", sampling, FrameSampling, "FrameSampling")
    return read_frames(as_path("path", path), VideoReading(sampling, image_size, reader))


def read_frames(path: str | os.PathLike[str], reading: VideoReading) -> VideoFrames:
    """Read one video as :func:`read_video` does, with its arguments in one record."""
    return _read_file(_open_reader(reading), Path(path), reading)


def read_or_take(video: object, reading: VideoReading) -> VideoFrames:
    """Read a video from its file, or prepare one in memory by :func:`take_frames`.

    The result warns of faults, and of frames that are far apart. Raises VideoError,
    InvalidArgumentError.
    """
    if isinstance(video, (VideoFrames, np.ndarray)):
        name, found = "a video in memory", take_frames(video, reading)
    else:
        path = as_path("a video", video)
        name, found = str(path), read_frames(path, reading)
    said = list(found.warnings)
    if thinning := found.thinning(reading.sampling.frames_per_second):
        said.append(f"{thinning}; what lies between is not seen: {_HOW_TO_CUT}")
    return replace(found, warnings=tuple(f"{name}: {warning}" for warning in said))


def check_reader(reading: VideoReading) -> None:
    """Raise MissingExtraError if the reader's package is not installed."""
    _open_reader(reading)


def read_videos(
    paths: Iterable[str | os.PathLike[str]],
    reading: VideoReading,
    *,
    ends_s: Iterable[float | None] | None = None,
    num_threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[tuple[Path, VideoFrames | VideoError]]:
    """Read many videos, one thread a video. A bad video does not stop the rest.

    At most ``prefetch`` videos are in work or waiting to be taken, so memory stays bounded and
    ``paths`` may be endless. Closing the iterator drops videos that have not started and waits
    for the others.

    Args:
        paths: Video files.
        reading: How the videos are read.
        ends_s: End of each video's part that is read, in seconds, as many as ``paths``. Without
            one, a video is read as ``reading`` says.
        num_threads: Videos read at the same time; by default the cores of this process.
        prefetch: Videos read ahead of the consumer; by default twice ``num_threads``. Fewer
            than ``num_threads`` leave threads idle.

    Returns:
        An iterator over (path, frames) in the order of ``paths``. For a video that cannot be
        read, it yields the ``VideoError`` of ``read_video`` in place of the frames.

    Raises:
        MissingExtraError: the reader's package is not installed.
        InvalidArgumentError: a number is below 1.
    """
    read = _open_reader(reading)
    threads = usable_cores() if num_threads is None else num_threads
    ahead = 2 * threads if prefetch is None else prefetch
    if threads < 1 or ahead < 1:
        raise InvalidArgumentError(
            f"num_threads is {num_threads} and prefetch is {prefetch}; expected at least 1 each"
        )
    # A separate generator makes wrong arguments raise here, not at the first video.
    ends = repeat(None) if ends_s is None else ends_s
    pairs = zip(paths, ends, strict=ends_s is not None)
    videos = ((Path(path), reading.until(end)) for path, end in pairs)
    return _iterate(read, videos, threads, ahead)


def _iterate(
    read: _Read, videos: Iterator[tuple[Path, VideoReading]], num_threads: int, prefetch: int
) -> Iterator[tuple[Path, VideoFrames | VideoError]]:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-video")
    waiting: deque[tuple[Path, Future[VideoFrames]]] = deque()
    try:
        while True:
            while len(waiting) < prefetch and (video := next(videos, None)) is not None:
                waiting.append((video[0], pool.submit(_read_file, read, *video)))
            if not waiting:
                return
            path, future = waiting.popleft()
            try:
                result: VideoFrames | VideoError = future.result()
            except VideoError as error:
                result = error
            yield path, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _open_reader(reading: VideoReading) -> _Read:
    """Import the decoding library and return its reader."""
    if reading.reader == "decord":
        from xclip_deploy.runtime.video.decord_reader import import_decord, read_with_decord

        import_decord()
        return read_with_decord
    from xclip_deploy.runtime.video.pyav_reader import read_with_pyav

    return read_with_pyav


def _read_file(read: _Read, path: Path, reading: VideoReading) -> VideoFrames:
    # Opening a pipe or device could block for ever, so only regular files are opened.
    if not path.exists():
        raise VideoNotFoundError(f"{path}: no such file; expected a video")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise VideoReadError(f"{path}: is {what}; expected a video file")
    try:
        if path.stat().st_size == 0:
            raise VideoReadError(f"{path}: is empty (0 bytes); expected a video file")
        with (reading.policy or NO_POLICY).enforced():
            return read(path, reading)
    except OSError as error:
        raise VideoReadError(f"{path}: cannot be read: {error.strerror or error}") from error
