"""How a video is to be read, and what reading it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.arguments import as_choice, as_whole_number
from xclip_deploy.runtime.presentation import brief
from xclip_deploy.runtime.video.sampling import FrameSampling

VideoReader = Literal["pyav", "decord"]
"""Library that decodes. PyAV is right on every file it was measured on; decord has hazards, see
its module."""


MAX_IMAGE_SIZE = 1 << 14
"""Longest side of frames, pixels; Pillow refuses images that are much larger."""


@dataclass(frozen=True)
class VideoReading:
    """How videos are read: which frames, at which size, with which library.

    Raises InvalidArgumentError for an unknown reader, or an ``image_size`` less than 1.
    """

    sampling: FrameSampling
    """Which frames are taken."""
    image_size: int
    """Side S of the frames, pixels."""
    reader: VideoReader = "pyav"

    def __post_init__(self) -> None:
        """Check the fields."""
        as_whole_number("image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        as_choice("reader", self.reader, VideoReader)

    def until(self, end_s: float | None) -> VideoReading:
        """Take no frames after ``end_s`` (see ``FrameSampling.end_s``); None changes nothing."""
        if end_s is None:
            return self
        return replace(self, sampling=self.sampling.model_copy(update={"end_s": end_s}))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {
            "sampling": self.sampling.model_dump(mode="json"),
            "image_size": self.image_size,
            "reader": self.reader,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VideoReading:
        """Restore what :meth:`to_dict` returned."""
        sampling = FrameSampling.model_validate(content["sampling"])
        return cls(sampling, int(content["image_size"]), content["reader"])


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """The sampled frames of one video, upright, resized and cropped, not padded."""

    frames: NDArray[np.uint8]
    """RGB, ``[n, S, S, 3]`` with ``1 <= n <= max_frames``."""
    times_s: NDArray[np.float64]
    """``[n]`` seconds from the start of the video, as a player shows them: time 0 is where
    the file's earliest stream starts, so that frame 0 can come after it."""
    frame_numbers: NDArray[np.int64]
    """``[n]`` positions among the video's frames in display order, counted from 0."""
    duration_s: float
    """Seconds from time 0 to the end of the last frame that is there, whatever the header
    says."""
    frame_rate: float
    """Frames per second, as used for sampling."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the file though frames could be read: truncated, corrupt frames,
    packets that did not decode, a change of resolution. One line each; empty if nothing."""

    def __repr__(self) -> str:
        return brief(
            self,
            frames=self.frames,
            duration_s=self.duration_s,
            frame_rate=self.frame_rate,
            warnings=self.warnings,
        )
