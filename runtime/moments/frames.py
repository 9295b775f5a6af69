"""Frames of a moment as a player shows them: upright, in RGB, with square pixels."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.arguments import PathName, as_whole_number
from xclip_deploy.runtime.moments.source import STEPS_BACK, MomentSource, UnsoundError
from xclip_deploy.runtime.video.colour import to_rgb
from xclip_deploy.runtime.video.containers import check_pixels
from xclip_deploy.runtime.video.frames import MAX_IMAGE_SIZE
from xclip_deploy.runtime.video.orientation import orientation_of

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from xclip_deploy.runtime.gallery.records import VideoFile

MAX_FRAMES = 64
"""Frames that :func:`frames_between` returns by default: 400 MB of 1080p."""


def frame_at(
    path: PathName,
    time_s: float,
    *,
    max_side: int | None = None,
    expected: VideoFile | None = None,
) -> NDArray[np.uint8]:
    """Read the frame that is on display at a time.

    Args:
        path: A video file.
        time_s: Time in the video, seconds.
        max_side: Longer side of the result, pixels, where the frame is larger.
        expected: State of the file when it was indexed.

    Returns:
        RGB, uint8 ``[height, width, 3]``, upright and with square pixels.

    Raises:
        InvalidArgumentError: the time lies outside the video.
        MomentSourceError: the file is gone or is not the expected one.
        VideoNotFoundError, VideoReadError: the file cannot be read.
    """
    source = MomentSource(path, expected)
    start = source.checked_time(time_s)
    frames, _ = _read(source, start, start, 1, max_side)
    return frames[0]


def frames_between(
    path: PathName,
    start_s: float,
    end_s: float,
    *,
    max_frames: int = MAX_FRAMES,
    max_side: int | None = None,
    expected: VideoFile | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read the frames that are on display from ``start_s`` up to ``end_s``.

    The arguments and errors are those of :func:`frame_at`. More than ``max_frames`` frames are
    thinned evenly.

    Returns:
        Frames uint8 ``[n, height, width, 3]`` and the times at which they appear ``[n]``. The
        first one may have appeared before ``start_s``.
    """
    count = as_whole_number("max_frames", max_frames, 1)
    source = MomentSource(path, expected)
    start, end = source.clipped(start_s, end_s)
    frames, times = _read(source, start, end, count, max_side)
    return np.stack(frames), np.array(times, np.float64)


def upright_rgb(
    source: MomentSource, frame: VideoFrame, max_side: int | None = None
) -> NDArray[np.uint8]:
    """Convert a frame to RGB ``[h, w, 3]``, cropped, turned, and with square pixels.

    Raises VideoReadError if its pixel format cannot be converted.
    """
    import av
    from PIL import Image

    check_pixels(source.path, frame.width, frame.height)
    try:
        rgb, warning = to_rgb(frame)
        pixels = rgb.to_ndarray().astype(np.uint8, copy=False)
    except (av.FFmpegError, ValueError) as error:
        raise VideoReadError(
            f"{source.path}: cannot convert pixel format {frame.format.name} to RGB: {error}"
        ) from error
    if warning:
        source.warnings[warning] = None
    orientation = orientation_of(frame)
    upright = orientation.apply(source.index.crop.apply(pixels))
    aspect = source.index.pixel_aspect
    size = shown_size(upright.shape, 1 / aspect if orientation.is_transposed else aspect, max_side)
    upright = np.ascontiguousarray(upright)
    if size == (upright.shape[1], upright.shape[0]):
        return upright
    return np.array(Image.fromarray(upright).resize(size, Image.Resampling.BICUBIC))


def shown_size(
    shape: tuple[int, ...], pixel_aspect: Fraction, max_side: int | None
) -> tuple[int, int]:
    """Return width and height with square pixels, the longer side at most ``max_side``."""
    height, width = float(shape[0]), float(shape[1])
    # As players do, stretch what is too narrow. Absurd aspects must not take the memory.
    aspect = min(max(float(pixel_aspect), 1 / 16), 16.0)
    width, height = (width * aspect, height) if aspect >= 1 else (width, height / aspect)
    scale = min(1.0, (max_side or MAX_IMAGE_SIZE) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _read(
    source: MomentSource, start_s: float, end_s: float, count: int, max_side: int | None
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    if max_side is not None:
        as_whole_number("max_side", max_side, 1, MAX_IMAGE_SIZE)
    *tries, last = STEPS_BACK
    found: tuple[list[NDArray[np.uint8]], list[float]] = [], []
    for back in tries:
        with suppress(UnsoundError):
            found = _thinned(source, start_s, end_s, count, max_side, back)
        if found[0]:
            break
    else:
        found = _thinned(source, start_s, end_s, count, max_side, last)
    if not found[0]:
        raise VideoReadError(
            f"{source.path}: no frame could be decoded between {start_s:.3f} s and {end_s:.3f} s"
        )
    source.check_unchanged()
    return found


def _thinned(
    source: MomentSource,
    start_s: float,
    end_s: float,
    count: int,
    max_side: int | None,
    back: int | None,
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Read at most ``count`` frames. Decoding twice keeps memory bounded without an index."""
    total = source.count(start_s, end_s)
    if total is None or back != 0:
        total = sum(1 for _ in source.shown(start_s, end_s, back))
    chosen = set(range(total))
    if total > count:
        chosen = set(np.linspace(0, total - 1, count).round().astype(int).tolist())
    pictures: list[NDArray[np.uint8]] = []
    times: list[float] = []
    for number, (time_s, frame) in enumerate(source.shown(start_s, end_s, back)):
        if number not in chosen:
            continue
        picture = upright_rgb(source, frame, max_side)
        if pictures and picture.shape != pictures[0].shape:
            from PIL import Image

            height, width = pictures[0].shape[:2]
            source.warnings["the resolution changes"] = None
            picture = np.array(Image.fromarray(picture).resize((width, height)))
        pictures.append(picture)
        times.append(time_s)
    return pictures, times
