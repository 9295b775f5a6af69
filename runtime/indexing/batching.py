"""Gather windows of several videos into batches for the encoder, and their features into videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, VideoError
from xclip_deploy.runtime.decoding import FileContent, FrameStream
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery.thumbnails import ThumbnailStore, thumbnail_key
from xclip_deploy.runtime.indexing.records import EncodedVideo, SegmentTimes, Task
from xclip_deploy.runtime.indexing.reuse import Encode, FrameReuse, Window
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video import Segmenter, SegmentFrames, VideoFrames

Check = Callable[[Sequence[str], Sequence[int], VideoFeatures], object]
"""Function that raises InvalidArgumentError for features that the gallery refuses."""


@dataclass(eq=False)
class OpenVideo:
    """A file whose windows are being encoded. A whole video is one window."""

    task: Task
    content: FileContent
    duration_s: float
    stream: FrameStream | None = None
    """The frames of a long video; None for a whole one."""
    segmenter: Segmenter | None = None
    """The windows of a long video; None for a whole one."""
    position_s: float = 0.0
    """End of what was read of a long video, seconds."""
    is_complete: bool = False
    """Whether every window was put into a batch."""
    failure: VideoError | None = None
    """The reason why the file cannot be indexed, if there is one."""
    segments: list[SegmentTimes] = field(default_factory=list)
    features: list[VideoFeatures] = field(default_factory=list)
    """Features of the encoded windows, V = 1 each."""

    @classmethod
    def whole(cls, task: Task, content: FileContent, frames: VideoFrames) -> OpenVideo:
        """Begin a video of one window."""
        return cls(task, content, frames.duration_s, is_complete=True)

    @property
    def is_done(self) -> bool:
        """Whether every window is encoded."""
        return self.is_complete and len(self.features) == len(self.segments)

    @property
    def progress(self) -> str:
        """Name and seconds done of seconds there are, for people."""
        name = self.task.source.path.rpartition("/")[2]
        return f"{name} {time_text(self.position_s)} of {time_text(self.duration_s)}"

    def encoded(self, segmentation: str) -> EncodedVideo:
        """Return the result of a video that is done. ``segmentation``: its policy in words."""
        features = VideoFeatures.concatenate(self.features)
        return EncodedVideo(self.duration_s, tuple(self.segments), features, segmentation)


class WindowBatch:
    """Windows that wait for the encoder, of one video or of many.

    Overlapping windows share frames, which :class:`FrameReuse` encodes once. Without it, they are
    encoded anew in each window: with a stride of half a window, the encoder works twice as much as
    without overlap.
    """

    def __init__(
        self,
        encode: Encode,
        max_batch: int,
        check: Check,
        thumbnails: ThumbnailStore | None = None,
        reuse: FrameReuse | None = None,
    ) -> None:
        self._encode_videos = encode
        self._reuse = reuse
        self._thumbnails = thumbnails
        self._check = check
        self._max_batch = max_batch
        self._windows: list[tuple[OpenVideo, Window]] = []

    @property
    def is_full(self) -> bool:
        """Whether the windows make a whole batch."""
        return len(self._windows) >= self._max_batch

    def add_whole(self, video: OpenVideo, frames: VideoFrames) -> None:
        """Add the frames of a video that is one window."""
        times_s = tuple(float(time_s) for time_s in frames.times_s)
        video.segments.append(SegmentTimes(0.0, frames.duration_s, times_s))
        self._windows.append((video, Window(frames.frames)))

    def add(self, video: OpenVideo, window: SegmentFrames) -> None:
        """Add a window of a long video."""
        times_s = tuple(float(time_s) for time_s in window.times_s)
        video.segments.append(SegmentTimes(window.start_s, window.end_s, times_s))
        content = video.content.content_sha256
        names = tuple((content, number) for number in window.numbers.tolist())
        self._windows.append((video, Window(window.frames, names)))

    def encode(self) -> list[OpenVideo]:
        """Encode the windows; return their videos that are done or failed with it."""
        # The batch is emptied first: one that cannot be encoded must not be tried again.
        windows, self._windows = self._windows, []
        windows = [(video, window) for video, window in windows if video.failure is None]
        if not windows:
            return []
        if self._reuse is None:
            features = self._encode_videos([window.frames for _, window in windows])
        else:
            features = self._reuse.encode([window for _, window in windows])
        touched: dict[OpenVideo, None] = {}
        for n, (video, window) in enumerate(windows):
            frames = window.frames
            touched[video] = None
            if video.failure is not None:
                continue
            part, path = features[n : n + 1], video.task.source.path
            try:
                # What the gallery refuses costs this file, not all that is committed with it.
                self._check([Path(path).name], [len(frames)], part)
            except InvalidArgumentError as fault:
                where = ""
                if video.segmenter is not None:
                    start_s = video.segments[len(video.features)].start_s
                    where = f" for the segment at {time_text(start_s)}"
                video.failure = VideoError(
                    f"{path}: the encoder gave wrong features{where}: {fault}"
                )
            else:
                self._keep_thumbnail(video, frames)
                video.features.append(part)
        return [video for video in touched if video.failure is not None or video.is_done]

    def _keep_thumbnail(self, video: OpenVideo, frames: npt.NDArray[np.uint8]) -> None:
        """Store the frame in the middle of the window that was just encoded."""
        if self._thumbnails is not None:
            start_s = video.segments[len(video.features)].start_s
            key = thumbnail_key(video.content.content_sha256, start_s)
            self._thumbnails.put(key, frames[len(frames) // 2])
