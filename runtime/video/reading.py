"""Reading one video or many, with either reader."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

from xclip_deploy.errors import (
    InvalidArgumentError,
    VideoError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime.video.frames import VideoFrames
from xclip_deploy.runtime.video.sampling import FrameSampling

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoFrames",
    "VideoReader",
    "find_videos",
    "read_video",
    "read_videos",
]

VideoReader = Literal["pyav", "decord"]
"""PyAV is right on every file it was measured on; decord has hazards, see its module."""

VIDEO_SUFFIXES: frozenset[str] = frozenset(
    {
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    }
)
"""Endings, in lower case, by which ``find_videos`` knows videos in folders."""

_Read = Callable[[Path, FrameSampling, int], VideoFrames]


def read_video(
    path: str | os.PathLike[str],
    sampling: FrameSampling,
    image_size: int,
    *,
    reader: VideoReader = "pyav",
) -> VideoFrames:
    """Read the sampled frames of one video, upright, resized and cropped.

    A damaged file gives the frames that survive, with warnings in the result.

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
        InvalidArgumentError: unknown reader, or ``image_size`` less than 1.
    """
    read = _prepare(reader, image_size)
    return _read_file(read, Path(path), sampling, image_size)


def read_videos(
    paths: Iterable[str | os.PathLike[str]],
    sampling: FrameSampling,
    image_size: int,
    *,
    reader: VideoReader = "pyav",
    num_threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[tuple[Path, VideoFrames | VideoError]]:
    """Read many videos, one thread a video; a bad one does not stop the rest.

    At most ``prefetch`` videos are being read or waiting to be taken, so memory stays
    bounded and ``paths`` may be endless. Closing the iterator drops what has not started
    and waits for what has.

    Args:
        paths: Video files.
        sampling: Which frames to take.
        image_size: Side S of the frames, pixels.
        reader: Library that decodes.
        num_threads: Videos read at the same time; by default, the cores of this process.
        prefetch: Videos read ahead of the consumer, at least ``num_threads`` to keep all
            threads busy; by default, twice as many.

    Returns:
        An iterator over (path, frames) in the order of ``paths``. In place of the frames of
        a video that cannot be read stands the ``VideoError`` that ``read_video`` would
        raise.

    Raises:
        MissingExtraError: the reader's package is not installed.
        InvalidArgumentError: unknown reader, or a number less than 1.
    """
    read = _prepare(reader, image_size)
    threads = _available_cores() if num_threads is None else num_threads
    ahead = 2 * threads if prefetch is None else prefetch
    if threads < 1 or ahead < 1:
        raise InvalidArgumentError(
            f"num_threads is {num_threads} and prefetch is {prefetch}; expected at least 1 each"
        )
    # A generator of its own, so that wrong arguments raise here and not at the first video.
    return _iterate(read, map(Path, paths), sampling, image_size, threads, ahead)


def _iterate(
    read: _Read,
    paths: Iterator[Path],
    sampling: FrameSampling,
    image_size: int,
    num_threads: int,
    prefetch: int,
) -> Iterator[tuple[Path, VideoFrames | VideoError]]:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-video")
    waiting: deque[tuple[Path, Future[VideoFrames]]] = deque()
    try:
        while True:
            while len(waiting) < prefetch and (path := next(paths, None)) is not None:
                future = pool.submit(_read_file, read, path, sampling, image_size)
                waiting.append((path, future))
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


def find_videos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List video files, searching folders to any depth.

    A file that is named is kept whatever its ending. In folders, files with one of
    ``VIDEO_SUFFIXES`` are taken, in the order of their names, a folder's own files before
    those of its subfolders; hidden files and folders are passed over. Links to folders are
    followed, each folder once. A path that is found twice is listed once.

    Args:
        paths: Files and folders.

    Returns:
        The files, in the order of ``paths``; empty where folders hold no video.

    Raises:
        VideoNotFoundError: one of ``paths`` does not exist.
        VideoReadError: a folder cannot be listed.
    """
    found: dict[Path, None] = {}  # in order, without repetition
    for path in map(Path, paths):
        if path.is_dir():
            found.update(dict.fromkeys(search_folder(path)))
        elif path.exists():
            found[path] = None
        else:
            raise VideoNotFoundError(f"{path}: no such file or folder; expected videos")
    return list(found)


def search_folder(
    folder: Path, on_error: Callable[[VideoReadError], None] | None = None
) -> Iterator[Path]:
    """The videos below one folder, as :func:`find_videos` lists them.

    ``on_error``: called for a folder that cannot be listed, and the rest goes on; without it,
    the error is raised.
    """

    def fail(error: OSError) -> None:
        failure = VideoReadError(f"{error.filename}: folder cannot be listed: {error.strerror}")
        if on_error is None:
            raise failure from error
        on_error(failure)

    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        try:
            status = Path(root).stat()
        except OSError as error:  # gone since it was listed
            fail(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in visited:  # a link back to where we have been
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            is_video = path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
            if is_video and path.is_file():
                yield path


def _prepare(reader: VideoReader, image_size: int) -> _Read:
    if image_size < 1:
        raise InvalidArgumentError(f"image_size is {image_size}; expected at least 1")
    if reader == "pyav":
        from xclip_deploy.runtime.video.pyav_reader import read_with_pyav

        return read_with_pyav
    if reader == "decord":
        from xclip_deploy.runtime.video.decord_reader import import_decord, read_with_decord

        import_decord()
        return read_with_decord
    raise InvalidArgumentError(
        f"reader is {reader!r}; expected one of {', '.join(get_args(VideoReader))}"
    )


def _read_file(read: _Read, path: Path, sampling: FrameSampling, image_size: int) -> VideoFrames:
    # A pipe or device would block for ever, so only regular files are opened.
    if not path.exists():
        raise VideoNotFoundError(f"{path}: no such file; expected a video")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise VideoReadError(f"{path}: is {what}; expected a video file")
    try:
        if path.stat().st_size == 0:
            raise VideoReadError(f"{path}: is empty (0 bytes); expected a video file")
        return read(path, sampling, image_size)
    except OSError as error:
        raise VideoReadError(f"{path}: cannot be read: {error.strerror or error}") from error


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # respects the limits of containers and taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
