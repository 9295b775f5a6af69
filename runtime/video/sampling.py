"""The choice of frames that the model sees of a video."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.model_config import FrozenModel

_MOST_DEVIATION_S = 0.1
_MOST_RATE_ERROR = 0.05


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
    return _thin_out(candidates, sampling.max_frames)


def has_constant_rate(times_s: NDArray[np.float64], frame_rate: float) -> bool:
    """Return whether frame numbers tell time, so that the authors' choice is one by time.

    With n frames, the average rate is r = (n - 1) / (last - first). The rate is constant if no
    frame is more than 0.1 s, or one frame where that is longer, from first + number / r, and if
    ``frame_rate`` is within 5 % of r. Rounded timestamps and a late first frame pass.

    Args:
        times_s: Display times of all frames, strictly increasing, seconds ``[n]``.
        frame_rate: Frames per second that the file declares.
    """
    if len(times_s) < 2:
        return True
    span_s = float(times_s[-1] - times_s[0])
    average = (len(times_s) - 1) / span_s
    deviation_s = np.abs(times_s - times_s[0] - np.arange(len(times_s)) / average).max()
    is_even = deviation_s <= max(_MOST_DEVIATION_S, 1.001 / average)
    return bool(is_even) and abs(frame_rate / average - 1) <= _MOST_RATE_ERROR


def sample_frame_times(times_s: NDArray[np.float64], sampling: FrameSampling) -> NDArray[np.int64]:
    """Choose frames by their times, for videos of a variable rate.

    Candidate ``k`` is the frame nearest to ``k / frames_per_second`` after the first frame, each
    frame once. Where two neighbours are more than 1.5 intervals apart and frames lie between
    them, the one nearest to the middle is a candidate too. So neighbours are further apart only
    where the video has no frame. ``end_s`` and ``max_frames`` act as in
    :func:`sample_frame_numbers`.

    Args:
        times_s: Display times of all frames, strictly increasing, seconds ``[n]``, n at least 1.
        sampling: Rate, largest number of frames, and end.

    Returns:
        Frame numbers as :func:`sample_frame_numbers` returns them.
    """
    times = (times_s - times_s[0]) * sampling.frames_per_second  # in intervals
    if sampling.end_s is not None:
        end = (int(sampling.end_s) + 1) * sampling.frames_per_second
        times = times[: np.searchsorted(times, end)]
    # A frame is nearest to the numbers from the middle before it to the middle behind it. It is
    # a candidate if a whole number is among them.
    middles = (times[1:] + times[:-1]) / 2
    begins = np.concatenate([[0.0], middles])
    ends = np.concatenate([middles, [times[-1] + 1e-6]])
    candidates = np.flatnonzero(np.ceil(begins) < ends)
    gaps = np.diff(times[candidates])
    between = []
    for gap in np.flatnonzero((gaps > 1.5) & (np.diff(candidates) > 1)):
        before, behind = int(candidates[gap]), int(candidates[gap + 1])
        middle = (times[before] + times[behind]) / 2
        between.append(before + 1 + int(np.abs(times[before + 1 : behind] - middle).argmin()))
    candidates = np.sort(np.concatenate([candidates, np.array(between, np.int64)]))
    return _thin_out(candidates.astype(np.int64), sampling.max_frames)


def _thin_out(candidates: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(candidates) <= most:
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, num=most, dtype=int)]


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
