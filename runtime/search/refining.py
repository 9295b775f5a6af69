"""Refinement of a moment's start and end from the similarity of single frames.

A window of the index begins where its number says, not where something happens. The curve of the
query's similarity over the frames tells more. It covers the hit's segment and the two segments
that touch or overlap it furthest before and after; frames that several of them hold are averaged.

    c(t)    similarity over frames, each replaced by the median of itself and its two neighbours
    peak    the largest c(t) in the hit's own segment
    level   (background + peak) / 2, where background is the median of c
    range   from the last crossing of ``level`` before the peak to the first one after it, each
            interpolated between two frames

This is the full width at half maximum. A median leaves edges in their place and bridges single
frames that dip; a mean would move the crossing of an uneven edge. XML (Lei et al., ECCV 2020)
learns filters that respond to the same rising and falling edges.

The range counts only where the curve is a step. The range and the frames below ``level`` must
explain 93 % of the variance of both, as Otsu's threshold measures it. The range must also fill a
quarter of the segment. Else the segment itself is the range. So it is where nothing happens, where
an event fills most of the neighbourhood, where one second of an event decides, and where the curve
rises by less than the scorer's temperature.

Without this condition, ranges did harm. On 250 events of generated videos without pauses, windows
of 6 s every 1.5 s, 55.2 % of the best windows in the right video reached a temporal IoU of 0.5.
Ranges of every peak reached 31.6 %, ranges of steps 53.2 %. The median error of the found
boundaries was 0.62, 0.44 and 0.50 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import fsum
from statistics import fmean, median

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.grains import TEMPERATURE
from xclip_deploy.runtime.results import TimeRange

_REACH = 64
"""Segments on each side among which neighbours are looked for."""
_LEAST_EXPLAINED = 0.93
"""Least share of the curve's variance between a range and the frames below its level."""
_LEAST_SHARE = 0.25
"""Least length of a range, as a share of its segment."""
_TOUCH_S = 0.05
"""Longest gap between neighbouring segments, seconds. Damage leaves longer ones."""


def neighbourhood(groups: Groups, row: int) -> list[int]:
    """Return the row and those that extend it furthest without a gap, in the order of time."""
    place = int(groups.places(np.array([row]))[0])
    number, rank = int(groups.numbers[place]), int(groups.ranks[place])
    first, stop = int(groups.starts[number]), int(groups.starts[number + 1])
    start_s, end_s = float(groups.start_s[place]), float(groups.end_s[place])
    before = after = rank
    for n in range(rank - 1, max(first, rank - _REACH) - 1, -1):
        if not groups.end_s[groups.order[n]] >= start_s - _TOUCH_S:
            break
        before = n
    for n in range(rank + 1, min(stop, rank + _REACH + 1)):
        if not groups.start_s[groups.order[n]] <= end_s + _TOUCH_S:
            break
        after = n
    ranks = dict.fromkeys((before, rank, after))
    return [int(groups.rows[groups.order[n]]) for n in ranks]


def curve(
    times_s: Sequence[Sequence[float]], values: Sequence[npt.NDArray[np.floating]]
) -> tuple[list[float], list[float]]:
    """Join the frames of several segments: times, ascending, and mean similarities."""
    found: dict[float, list[float]] = {}  # time, sum and number of similarities
    for times, part in zip(times_s, values, strict=True):
        for time_s, value in zip(times, part.tolist(), strict=True):
            key = round(time_s, 6)
            frame = found.get(key)
            if frame is None:
                found[key] = [time_s, value, 1]
            else:
                frame[1] += value
                frame[2] += 1
    frames = sorted(found.values())
    return [frame[0] for frame in frames], [frame[1] / frame[2] for frame in frames]


def refine(
    times: Sequence[float],
    values: Sequence[float],
    segment: tuple[float, float],
    bounds: tuple[float, float],
) -> TimeRange:
    """Find the range around the best frame of a segment; the module says how.

    ``times``, ``values``: the curve, seconds and similarities. ``segment``, ``bounds``: start and
    end of the hit's segment and of its neighbourhood, seconds. The range is not empty and lies in
    ``bounds``.
    """
    # Plain lists: for a few dozen frames they are faster than arrays.
    start_s, end_s = segment
    gaps = [after - before for before, after in pairwise(times)]
    whole = TimeRange(start_s, end_s, max(gaps, default=end_s - start_s))
    own = [n for n, time_s in enumerate(times) if start_s <= time_s < end_s]
    if not own:  # a slide that was on display before the segment
        own = [n for n, time_s in enumerate(times) if time_s < end_s][-1:]
    if not own or len(times) < 2:
        return whole
    padded = [values[0], *values, values[-1]]
    smooth = [sorted(padded[n : n + 3])[1] for n in range(len(values))]
    background = median(smooth)
    peak = max(own, key=smooth.__getitem__)
    if smooth[peak] - background < TEMPERATURE:
        return whole
    level = (background + smooth[peak]) / 2
    first = last = peak
    while first >= 0 and smooth[first] >= level:
        first -= 1
    while last < len(times) and smooth[last] >= level:
        last += 1
    found_s = bounds[0] if first < 0 else _crossing(times, smooth, first, level)
    stop_s = bounds[1] if last == len(times) else _crossing(times, smooth, last - 1, level)
    found_s, stop_s = max(found_s, bounds[0]), min(stop_s, bounds[1])
    if stop_s - found_s < _LEAST_SHARE * (end_s - start_s) or not found_s < stop_s:
        return whole
    # Frames outside that are above the level belong to other events: they say nothing of this one.
    inside = [v for t, v in zip(times, values, strict=True) if found_s <= t < stop_s]
    outside = [
        v
        for t, v, s in zip(times, values, smooth, strict=True)
        if not found_s <= t < stop_s and s < level
    ]
    if _explained(inside, outside) < _LEAST_EXPLAINED:
        return whole
    return TimeRange(found_s, stop_s, max(gaps[max(first, 0) : last]))


def _explained(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return the share of the variance that lies between two groups of similarities."""
    if not inside or not outside:
        return 0.0
    mean = fmean([*inside, *outside])
    total = fsum((value - mean) ** 2 for value in (*inside, *outside))
    between = sum(len(part) * (fmean(part) - mean) ** 2 for part in (inside, outside))
    return between / total if total > 0 else 0.0


def _crossing(times_s: Sequence[float], values: Sequence[float], n: int, level: float) -> float:
    """Return the time at which the line from frame n to frame n + 1 crosses ``level``."""
    share = (level - values[n]) / (values[n + 1] - values[n])
    return times_s[n] + share * (times_s[n + 1] - times_s[n])
