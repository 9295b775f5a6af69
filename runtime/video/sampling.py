"""Which frames of a video the model looks at."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.model_config import FrozenModel


class FrameSampling(FrozenModel):
    """How many frames of a video are taken, and how far apart."""

    frames_per_second: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Candidate frames per second of video. The published models use 1."""
    max_frames: int = Field(gt=0)
    """Largest number of frames; longer videos are thinned out evenly."""
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Last second of the video from which frames are taken, itself included, as the authors
    cut videos: 31 takes those of seconds 0 to 31, up to 32 candidates at one a second. None:
    the whole video."""


def sample_frame_numbers(
    frame_count: int, frame_rate: float, sampling: FrameSampling
) -> NDArray[np.int64]:
    """Choose frames as the authors of X-CLIP and CLIP4Clip do.

    With ``fps = max(1, int(frame_rate))``, second ``s`` of the video starts at frame
    ``s * fps``: the fraction of the rate is dropped, so that for 29.97 frames per second
    the samples drift by one frame in 29 and there can be one more than there are seconds.
    Within a second the candidates are the first ``frames_per_second`` of
    ``arange(0, fps, fps // frames_per_second)``. Where there are more than ``max_frames``
    candidates, those at ``int(linspace(0, candidates - 1, max_frames))`` are kept. With
    ``end_s``, the seconds are those of ``arange(0, min(end_s, duration) + 1)``: what starts
    at ``end_s`` still counts.

    The authors know whole rates only. For others, such as one frame every two seconds
    (0.5), candidate ``k`` is frame ``floor(k * fps / frames_per_second)``: an extension of
    ours that gives the same frames wherever a whole rate divides ``fps``.

    Args:
        frame_count: Number of frames that can be decoded, at least 1.
        frame_rate: Frames per second, more than 0.
        sampling: The rate, the largest number of frames, and where to stop.

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
        # Counted in the authors' seconds of whole frames, so that a cut video gives what a
        # video that ends there would.
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
    # As a fraction, so that 0.1 means every tenth second and not a frame less now and then.
    step = fps / Fraction(rate).limit_denominator(1_000_000)
    count = math.ceil(frame_count / step)
    return np.array([math.floor(k * step) for k in range(count)], dtype=np.int64)
