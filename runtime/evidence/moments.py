"""The best moment of a video for a text, at the resolution of the sampled frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import first_best
from xclip_deploy.runtime.grains import TEMPERATURE
from xclip_deploy.runtime.presentation import time_text


@dataclass(frozen=True)
class BestMoment:
    """A time range of a video, seconds from its start."""

    start_s: float
    end_s: float
    best_frame_time_s: float
    """Time of the sampled frame that is most similar to the text, within the range."""
    resolution_s: float
    """Largest distance between neighbouring sampled frames at the range. Nothing between them was
    seen: start and end are exact to half of it."""

    def __str__(self) -> str:
        return (
            f"{time_text(self.start_s, 1)} to {time_text(self.end_s, 1)} "
            f"(sampled frames are {self.resolution_s:.2g} s apart)"
        )


def find_moment(
    similarity: npt.NDArray[np.floating],
    times_s: Sequence[float],
    end_s: float | None,
    start_s: float = 0.0,
) -> BestMoment:
    """Find the time around the frame that is most similar to a text.

    ``similarity`` [n]: similarity of the sentence to each of the n valid frames. ``times_s`` [n]:
    their times, rising. ``start_s``, ``end_s``: ends of the video, or of its segment. A frame
    covers the time that is nearer to it than to any other frame. The moment covers the best frame
    and adjacent frames within the scorer's temperature (0.01) of it: each has at least 1/e of its
    attention. If the end is unknown, the last frame covers as much time after it as before it.
    """
    best = first_best(similarity)
    first = last = best
    while first > 0 and similarity[best] - similarity[first - 1] <= TEMPERATURE:
        first -= 1
    while last + 1 < len(times_s) and similarity[best] - similarity[last + 1] <= TEMPERATURE:
        last += 1
    gaps = np.diff(times_s)
    if end_s is None:
        end_s = times_s[-1] + (float(gaps[-1]) / 2 if len(gaps) else 0.0)
    end_s = max(end_s, times_s[-1])
    # A slide that was on display at the start of a segment has an earlier time.
    start_s = min(start_s, times_s[0])
    # These are the gaps inside the range and the two at its ends.
    around = gaps[max(first - 1, 0) : last + 1]
    return BestMoment(
        start_s=start_s if first == 0 else (times_s[first - 1] + times_s[first]) / 2,
        end_s=end_s if last + 1 == len(times_s) else (times_s[last] + times_s[last + 1]) / 2,
        best_frame_time_s=times_s[best],
        resolution_s=float(around.max()) if len(around) else end_s - start_s,
    )
