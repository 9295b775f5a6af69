"""The choice of frames that the model sees of a video."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.model_config import FrozenModel


class FrameSampling(FrozenModel):
    """Number and spacing of the frames that are taken of a video."""

    frames_per_second: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Candidate frames per second of video; 1 for the published models."""
    max_frames: int = Field(gt=0)
    """Largest number of frames. Of a longer video, evenly spaced candidates are kept."""
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Last second of the video from which frames are taken, inclusive, as the authors cut
    videos. For example, 31 takes frames of seconds 0 to 31: up to 32 candidates at one a second.
    None takes the whole video."""


def sample_frame_numbers(
    frame_count: int, frame_rate: float, sampling: FrameSampling
) -> NDArray[np.int64]:
    """Choose frames as the authors of X-CLIP and CLIP4Clip do.

    With ``fps = max(1, int(frame_rate))``, second ``s`` of the video starts at frame
    ``s * fps``. This drops the fraction of the rate: at 29.97 frames per second the samples
    drift by one frame in 29, and there can be one sample more than seconds.
    Within a second the candidates are the first ``frames_per_second`` of
    ``arange(0, fps, fps // frames_per_second)``. Of more than ``max_frames`` candidates, those
    at ``int(linspace(0, candidates - 1, max_frames))`` are kept. With ``end_s``, the seconds
    are ``arange(0, min(end_s, duration) + 1)``, so frames that start at ``end_s`` still count.

    The authors allow whole rates only. For others, such as one frame every two seconds (0.5),
    candidate ``k`` is frame ``floor(k * fps / frames_per_second)``. This extension gives the
    same frames wherever a whole rate divides ``fps``.

    Args:
        frame_count: Number of frames that can be decoded, at least 1.
        frame_rate: Frames per second, more than 0.
        sampling: Rate, largest number of frames, and end.

    Returns:
        Frame numbers in display order, counted from 0: int64 ``[n]`` with
        ``1 <= n <= max_frames``, strictly increasing, each below ``frame_count``.

    Raises:
        InvalidArgumentError: ``frame_count`` or ``frame_rate`` is out of range.
    """
    if frame_count < 1:
        raise InvalidArgumentError(f"frame_count is {frame_count}; expected at least 1")
    if not (math.isfinite(frame_rate) and frame_rate > 0):
        raise InvalidArgumentError(
            f"frame_rate is {frame_rate}; expected a finite number more than 0"
        )
    fps = max(1, int(frame_rate))
    if sampling.end_s is not None:
        # The authors' seconds are whole numbers of frames. Counting in them gives the same
        # frames as a video that ends there.
        frame_count = min(frame_count, (int(sampling.end_s) + 1) * fps)
    candidates = _candidates(frame_count, fps, sampling.frames_per_second)
    if len(candidates) > sampling.max_frames:
        kept = np.linspace(0, len(candidates) - 1, num=sampling.max_frames, dtype=int)
        candidates = candidates[kept]
    return candidates


def _candidates(frame_count: int, fps: int, rate: float) -> NDArray[np.int64]:
    if rate >= fps:
        return np.arange(frame_count, dtype=np.int64)
    if rate.is_integer():
        per_second = int(rate)
        offsets = np.arange(0, fps, fps // per_second, dtype=np.int64)[:per_second]
        bases = np.arange(0, frame_count, fps, dtype=np.int64)
        numbers = (bases[:, None] + offsets).reshape(-1)
        return numbers[numbers < frame_count]
    # A fraction keeps 0.1 exact; a float would now and then give a frame too early.
    step = fps / Fraction(rate).limit_denominator(1_000_000)
    count = math.ceil(frame_count / step)
    return np.array([math.floor(k * step) for k in range(count)], dtype=np.int64)
