"""Refinement of a moment's start and end from the similarity of single frames.

A window of the index begins where its number says, not where something happens. The curve of the
query's similarity over the frames tells more. It covers the hit's segment and the two segments
that touch or overlap it furthest before and after; frames that several of them hold are averaged.

    c(t)    similarity over frames, smoothed by (1, 2, 1) / 4
    peak    the largest c(t) in the hit's own segment
    level   (background + peak) / 2, where background is the lower quartile of c
    range   from the last crossing of ``level`` before the peak to the first one after it, each
            interpolated between two frames

This is the full width at half maximum. For a step between two levels, symmetric smoothing leaves
the crossing of half height in its place. So the smoothing costs no accuracy there, and it bridges
single frames that dip. XML (Lei et al., ECCV 2020) learns filters that respond to the same rising
and falling edges. The lower quartile stands for the background, as an event may fill more than
half of the neighbourhood.

A curve that rises by less than the scorer's temperature shows no event: the segment itself is the
range then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.grains import TEMPERATURE
from xclip_deploy.runtime.results import TimeRange

_REACH = 64
"""Segments on each side among which neighbours are looked for."""
_TOUCH_S = 0.05
"""Longest gap between neighbouring segments, seconds. Damage leaves longer ones."""


def neighbourhood(groups: Groups, row: int) -> Rows:
    """Return the row and those that extend it furthest without a gap, in the order of time."""
    near = groups.around(row, _REACH)
    places = groups.places(near)
    starts_s, ends_s = groups.start_s[places], groups.end_s[places]
    own = int(np.flatnonzero(near == row)[0])
    found = [row]
    before = np.flatnonzero((starts_s < starts_s[own]) & (ends_s >= starts_s[own] - _TOUCH_S))
    after = np.flatnonzero((ends_s > ends_s[own]) & (starts_s <= ends_s[own] + _TOUCH_S))
    if len(before):
        found.insert(0, int(near[before[np.argmin(starts_s[before])]]))
    if len(after):
        found.append(int(near[after[np.argmax(ends_s[after])]]))
    return np.array(found, np.int64)


def curve(
    times_s: Sequence[Sequence[float]], values: Sequence[npt.NDArray[np.floating]]
) -> tuple[Float64Array, Float64Array]:
    """Join the frames of several segments: times, ascending, and mean similarities."""
    times = np.concatenate([np.asarray(part, np.float64) for part in times_s])
    found, places = np.unique(times.round(6), return_inverse=True)
    sums = np.bincount(places, np.concatenate(values).astype(np.float64))
    return found, sums / np.bincount(places)


def refine(
    times_s: Float64Array,
    similarity: Float64Array,
    segment: tuple[float, float],
    bounds: tuple[float, float],
) -> TimeRange:
    """Find the range around the best frame of a segment; the module says how.

    ``times_s`` [n], ``similarity`` [n]: the curve. ``segment``, ``bounds``: start and end of the
    hit's segment and of its neighbourhood, seconds. The range is not empty and lies in ``bounds``.
    """
    # Plain lists: for a few dozen frames they are faster than arrays.
    start_s, end_s = segment
    times, values = times_s.tolist(), similarity.tolist()
    gaps = [after - before for before, after in pairwise(times)]
    whole = TimeRange(start_s, end_s, max(gaps, default=end_s - start_s))
    own = [n for n, time_s in enumerate(times) if start_s <= time_s < end_s]
    if not own:  # a slide that was on display before the segment
        own = [n for n, time_s in enumerate(times) if time_s < end_s][-1:]
    if not own or len(times) < 2:
        return whole
    padded = [values[0], *values, values[-1]]
    smooth = [(a + 2 * b + c) / 4 for a, b, c in zip(padded, values, padded[2:], strict=False)]
    background = sorted(smooth)[len(smooth) // 4]
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
    if not found_s < stop_s:
        return whole
    return TimeRange(found_s, stop_s, max(gaps[max(first, 0) : last]))


def _crossing(times_s: list[float], values: list[float], n: int, level: float) -> float:
    """Return the time at which the line from frame n to frame n + 1 crosses ``level``."""
    share = (level - values[n]) / (values[n + 1] - values[n])
    return times_s[n] + share * (times_s[n + 1] - times_s[n])
