"""What reading a video gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
