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

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum
from operator import sub
from statistics import fmean, median

from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.grains import TEMPERATURE
from xclip_deploy.runtime.results import TimeRange

_REACH = 64
"""Segments on each side among which neighbours are looked for."""
_LEAST_EXPLAINED = 0.93
"""Least share of the curve's variance between a range and the frames below its level."""
_LEAST_SHARE = 0.25
"""Least length of a range, as a share of its segment."""
_SAME_DIGITS = 6
_SAME_S = 10.0**-_SAME_DIGITS
"""Times are equal that agree to this many digits after the point."""
_TOUCH_S = 0.05
"""Longest gap between neighbouring segments, seconds. Damage leaves longer ones."""


@dataclass(frozen=True)
class Neighbourhood:
    """A row and those that extend it furthest without a gap."""

    rows: list[int]
    """One to three rows, in the order of time."""
    bounds: tuple[float, float]
    """Start of the first and end of the last of them, seconds; NaN where they are not known."""


def neighbourhoods(groups: Groups, rows: Rows) -> list[Neighbourhood]:
    """Return the neighbourhood of each of ``rows``."""
    places = groups.places(rows)
    numbers, order = groups.numbers[places], groups.order
    found = []
    for rank, first, stop, start_s, end_s in zip(
        groups.ranks[places].tolist(),
        groups.starts[numbers].tolist(),
        groups.starts[numbers + 1].tolist(),
        groups.start_s[places].tolist(),
        groups.end_s[places].tolist(),
        strict=True,
    ):
        before = after = rank
        for n in range(rank - 1, max(first, rank - _REACH) - 1, -1):
            if not groups.end_s[order[n]] >= start_s - _TOUCH_S:
                break
            before = n
        for n in range(rank + 1, min(stop, rank + _REACH + 1)):
            if not groups.start_s[order[n]] <= end_s + _TOUCH_S:
                break
            after = n
        near = [order[n] for n in dict.fromkeys((before, rank, after))]
        bounds = float(groups.start_s[near[0]]), float(groups.end_s[near[-1]])
        found.append(Neighbourhood([int(groups.rows[place]) for place in near], bounds))
    return found


def curve(
    times_s: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Join the frames of several segments: times, ascending, and mean similarities."""
    joined = list(chain.from_iterable(times_s))
    if min(map(sub, joined[1:], joined), default=1.0) > 2 * _SAME_S:  # no frame is in two segments
        return joined, list(chain.from_iterable(values))
    found: dict[float, list[float]] = {}  # time, sum and number of similarities
    for times, part in zip(times_s, values, strict=True):
        for time_s, value in zip(times, part, strict=True):
            key = round(time_s, _SAME_DIGITS)
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
    gaps = list(map(sub, times[1:], times))
    whole = TimeRange(start_s, end_s, max(gaps, default=end_s - start_s))
    stop = bisect_left(times, end_s)
    # A slide may have been on display before the segment.
    own = range(min(bisect_left(times, start_s), max(stop - 1, 0)), stop)
    if not own or len(times) < 2:
        return whole
    smooth = _medians([values[0], *values[:-1]], values, [*values[1:], values[-1]])
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
    begin, end = bisect_left(times, found_s), bisect_left(times, stop_s)
    outside = [
        value
        for part in (slice(begin), slice(end, None))
        for value, smoothed in zip(values[part], smooth[part], strict=True)
        if smoothed < level
    ]
    if _explained(values[begin:end], outside) < _LEAST_EXPLAINED:
        return whole
    return TimeRange(found_s, stop_s, max(gaps[max(first, 0) : last]))


def _medians(
    before: Sequence[float], values: Sequence[float], after: Sequence[float]
) -> list[float]:
    """Return the median of each value and its two neighbours. Sorting takes twice as long."""
    return [
        b if (a <= b) == (b <= c) else a if (a > c) == (b > c) else c
        for a, b, c in zip(before, values, after, strict=True)
    ]


def _explained(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return the share of the variance that lies between two groups of similarities."""
    if not inside or not outside:
        return 0.0
    both = [*inside, *outside]
    mean = fmean(both)
    total = fsum([(value - mean) * (value - mean) for value in both])
    between = sum(len(part) * (fmean(part) - mean) ** 2 for part in (inside, outside))
    return between / total if total > 0 else 0.0


def _crossing(times_s: Sequence[float], values: Sequence[float], n: int, level: float) -> float:
    """Return the time at which the line from frame n to frame n + 1 crosses ``level``."""
    share = (level - values[n]) / (values[n + 1] - values[n])
    return times_s[n] + share * (times_s[n + 1] - times_s[n])
