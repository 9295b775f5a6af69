"""Videos whose frames are already in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_array, as_number, shown
from xclip_deploy.runtime.video.frames import VideoFrames, VideoReading
from xclip_deploy.runtime.video.preprocessing import resize_and_crop

if TYPE_CHECKING:
    from PIL.Image import Image

VideoLike: TypeAlias = str | PathLike[str] | VideoFrames | NDArray[np.uint8]
"""A video file, the frames that ``read_video`` returned, or uint8 RGB [n, height, width, 3]."""
ImageLike: TypeAlias = "str | PathLike[str] | Image | NDArray[np.uint8]"
"""An image file that Pillow reads, a Pillow image, or uint8 RGB [height, width, 3]."""

_Videos = TypeVar("_Videos")


def listed(videos: _Videos) -> _Videos | list[Any]:
    """Return the items of a generator or another iterable as a list, to be read more than once.

    One video, a sequence of videos and anything that is no iterable are returned unchanged.
    """
    if isinstance(videos, (str, bytes, PathLike, VideoFrames, np.ndarray, list, tuple, Mapping)):
        return videos
    return list(videos) if isinstance(videos, Iterable) else videos


def are_frames(videos: object) -> bool:
    """Return whether a video, or every video of a list, is frames in memory.

    Raises InvalidArgumentError for a list that mixes frames and files.
    """
    if isinstance(videos, (VideoFrames, np.ndarray)):
        return True
    if not isinstance(videos, (list, tuple)):
        return False
    kinds = {isinstance(video, (VideoFrames, np.ndarray)) for video in videos}
    if len(kinds) > 1:
        raise InvalidArgumentError(
            "videos holds both files and frames in memory; expected one kind in a call"
        )
    return kinds == {True}


def as_videos(videos: object) -> list[VideoFrames | NDArray[np.uint8]]:
    """Return one or several videos in memory as a list. A stack [videos, n, H, W, 3] is several."""
    if isinstance(videos, VideoFrames):
        return [videos]
    if isinstance(videos, np.ndarray):
        return list(videos) if videos.ndim == 5 else [videos]
    assert isinstance(videos, (list, tuple))
    return list(videos)


def take_frames(video: VideoFrames | NDArray[np.uint8], reading: VideoReading) -> VideoFrames:
    """Prepare frames in memory for the model.

    ``video`` is a result of ``read_video``, which is returned unchanged, or uint8 RGB
    [n, height, width, 3] at the rate that the model samples. Of more frames than the model
    takes, evenly spaced ones are kept, as for a long file. Each frame is resized and cropped.
    Raises InvalidArgumentError for anything else.
    """
    size, most = reading.image_size, reading.sampling.max_frames
    if isinstance(video, VideoFrames):
        frames = video.frames
        is_fit = isinstance(frames, np.ndarray) and frames.shape[1:] == (size, size, 3)
        if not is_fit or frames.dtype != np.uint8 or not 1 <= len(frames) <= most:
            raise InvalidArgumentError(
                f"frames is {shown(frames)}; expected uint8 [1 to {most}, {size}, {size}, 3]"
            )
        count = len(frames)
        as_array("times_s", video.times_s, np.floating, (count,), f"decimal numbers [{count}]")
        as_number("duration_s", video.duration_s, 0)
        return video
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        raise InvalidArgumentError(
            f"a video is {shown(video)}; expected uint8 [frames, height, width, 3], not empty"
        )
    count, rate = len(video), reading.sampling.frames_per_second
    numbers = np.arange(count)
    if count > most:
        numbers = np.linspace(0, count - 1, num=most, dtype=int)
    return VideoFrames(
        frames=np.stack([resize_and_crop(video[number], size) for number in numbers]),
        times_s=numbers / rate,
        frame_numbers=numbers.astype(np.int64),
        duration_s=count / rate,
        frame_rate=rate,
    )
