"""The choice of one frame for each tick of a long video's clock.

Tick k lies at k / frames_per_second on the player's clock. A frame belongs to the tick that is
nearest to its display time, and the nearest frame of a tick stands for it. A tick without a frame
of its own shows the frame before, as in a slide show. So no frame is chosen twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Frame = TypeVar("Frame")
ROUNDING_S = 1e-6
"""Times this close, in seconds, differ by rounding alone."""


def choose_ticks(
    times_s: NDArray[np.float64], frames_per_second: float, end_s: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose among frames whose times are all known.

    Args:
        times_s: Display times of all frames on the player's clock, increasing, seconds ``[n]``.
        frames_per_second: Ticks per second.
        end_s: End of the video; later ticks are left out.

    Returns:
        The ticks that have a frame, increasing, int64 ``[k]``, and the number of the frame of
        each, int64 ``[k]``.
    """
    ticks = np.floor(times_s * frames_per_second + 0.5).astype(np.int64)
    distances = np.abs(times_s - ticks / frames_per_second)
    order = np.lexsort((np.arange(len(ticks)), distances, ticks))
    found, firsts = np.unique(ticks[order], return_index=True)
    is_inside = (found >= 0) & (found / frames_per_second < end_s - ROUNDING_S)
    return found[is_inside], order[firsts][is_inside]


@dataclass(frozen=True)
class Choice(Generic[Frame]):
    """A frame that stands for a tick."""

    tick: int
    time_s: float
    frame: Frame


class TickPicker(Generic[Frame]):
    """The same choice among frames that come one after the other, in the order of display."""

    def __init__(self, frames_per_second: float, end_s: float) -> None:
        self._rate = frames_per_second
        self._end_s = end_s
        self._best: Choice[Frame] | None = None
        self._distance = 0.0
        self._last = -1  # tick that was emitted last

    def offer(self, time_s: float, frame: Frame, *, is_damaged: bool) -> Choice[Frame] | None:
        """Take the next frame, and return the choice for an earlier tick once it is certain.

        A damaged frame stands for a tick only if the tick has no other.
        """
        tick = math.floor(time_s * self._rate + 0.5)
        if tick <= self._last or tick / self._rate >= self._end_s - ROUNDING_S:
            return None
        distance = abs(time_s - tick / self._rate) + is_damaged / self._rate
        best = self._best
        if best is not None and best.tick == tick:
            if distance < self._distance:
                self._best, self._distance = Choice(tick, time_s, frame), distance
            return None
        certain = self.finish()
        self._best, self._distance = Choice(tick, time_s, frame), distance
        return certain

    def withdraw(self, time_s: float) -> None:
        """Drop the choice that is still open if it is the frame of this time."""
        if self._best is not None and self._best.time_s == time_s:
            self._best = None

    def finish(self) -> Choice[Frame] | None:
        """Return the choice that is still open, if any: no more frames come for its tick."""
        best, self._best = self._best, None
        if best is not None:
            self._last = best.tick
        return best
