"""The record of how videos are read, and the frames that reading returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_choice, as_truth, as_whole_number
from xclip_deploy.runtime.presentation import brief, time_text
from xclip_deploy.runtime.video.media_policy import MediaPolicy
from xclip_deploy.runtime.video.sampling import FrameSampling

VideoReader = Literal["pyav", "decord"]
"""Library that decodes. PyAV read every measured file correctly. decord has hazards that its
module lists."""


READING_VERSION = 1
"""Version of the choice of frames and of their pixels, for any file. It is raised whenever either
changes, so that a gallery knows which of its videos were read differently."""
SampledBy = Literal["frame numbers", "times"]
"""How frames were chosen: by the authors' frame numbers, or by timestamps."""
_THIN = 3.0
"""Times as few frames as the model's rate asks for: so thin, a whole video is worth a warning."""
MAX_IMAGE_SIZE = 1 << 14
"""Largest side of the frames, pixels. Pillow refuses images that are much larger."""


@dataclass(frozen=True)
class VideoReading:
    """How videos are read: which frames, at which size, with which library.

    Raises InvalidArgumentError for an unknown reader, an ``image_size`` below 1, or decord with a
    policy that chooses formats.
    """

    sampling: FrameSampling
    """Choice of frames."""
    image_size: int
    """Side S of the frames, pixels."""
    reader: VideoReader = "pyav"
    """Library that decodes."""
    square_pixels: bool = False
    """Show anamorphic video in its true proportions. Off, stored pixels count as square, as
    for the authors' reader."""
    policy: MediaPolicy | None = None
    """Limits on the files; None for none beside those that always hold."""

    def __post_init__(self) -> None:
        """Check the fields."""
        as_whole_number("image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        as_choice("reader", self.reader, VideoReader)
        as_truth("square_pixels", self.square_pixels)
        if self.reader == "decord" and self.policy is not None and self.policy.chooses_formats:
            raise InvalidArgumentError(
                "decord opens every format; expected the reader pyav with this policy"
            )

    def until(self, end_s: float | None) -> VideoReading:
        """Return a reading that ends at ``end_s``, or this one if ``end_s`` is None."""
        if end_s is None:
            return self
        return replace(self, sampling=self.sampling.model_copy(update={"end_s": end_s}))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "sampling": self.sampling.model_dump(mode="json"),
            "image_size": self.image_size,
            "reader": self.reader,
            "square_pixels": self.square_pixels,
            "policy": None if self.policy is None else self.policy.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VideoReading:
        """Restore a reading from the result of :meth:`to_dict`."""
        sampling = FrameSampling.model_validate(content["sampling"])
        policy = content["policy"]
        return cls(
            sampling,
            int(content["image_size"]),
            content["reader"],
            content["square_pixels"],
            None if policy is None else MediaPolicy.from_dict(policy),
        )


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """Sampled frames of one video, upright, resized and cropped, not padded."""

    frames: NDArray[np.uint8]
    """RGB, ``[n, S, S, 3]`` with ``1 <= n <= max_frames``."""
    times_s: NDArray[np.float64]
    """Display times on a player's clock, seconds ``[n]``. Time 0 is the start of the file's
    earliest stream, so frame 0 can come after it."""
    frame_numbers: NDArray[np.int64]
    """Positions among the video's frames in display order, counted from 0, ``[n]``."""
    duration_s: float
    """Seconds from time 0 to the end of the last frame in the file. The header does not count."""
    frame_rate: float
    """Frames per second that sampling assumed; the average if it went by times."""
    sampled_by: SampledBy = "frame numbers"
    """``"times"`` for a variable frame rate, whose frames were chosen by their timestamps."""
    warnings: tuple[str, ...] = ()
    """Faults of a file whose frames could be read: truncation, corrupt frames, packets that did
    not decode, a change of resolution. One line each; empty for an intact file."""

    def thinning(self, frames_per_second: float) -> str | None:
        """Say how far apart the frames are if they are far fewer than the model's rate asks for.

        Returns None for at least a third of them.
        """
        count = len(self.frames)
        if self.duration_s * frames_per_second <= _THIN * count or count < 2:
            return None
        span_s = float(self.times_s[-1] - self.times_s[0]) / (count - 1)
        return f"{time_text(self.duration_s)} are seen in {count} frames, one every {span_s:.0f} s"

    def __repr__(self) -> str:
        return brief(
            self,
            frames=self.frames,
            duration_s=self.duration_s,
            frame_rate=self.frame_rate,
            warnings=self.warnings,
        )
