"""Shots as hints for windows: a window's edges move to a cut nearby.

The detector is PySceneDetect's, fed with the frames that are decoded anyway: those of the ticks,
at the size of the model. So a cut is known to one interval between frames. Fixed cameras have no
cuts, and keep the plain windows.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import MissingExtraError

_THRESHOLD = 27.0
"""PySceneDetect's own: mean change of hue, saturation and brightness, of 255."""


def import_scenedetect() -> Any:  # noqa: ANN401 - the package has no types for us to check
    """Import PySceneDetect. Raises MissingExtraError if it is not installed."""
    try:
        return importlib.import_module("scenedetect")
    except ImportError as error:
        raise MissingExtraError("scenedetect", "shots", "Segments at shots") from error


class ShotDetector:
    """Cuts between frames that come one after the other."""

    def __init__(self, frames_per_second: float) -> None:
        """Load the detector. Raises MissingExtraError."""
        scenedetect = import_scenedetect()
        self._rate = float(frames_per_second)
        # Frames are so far apart that two cuts in a row are two shots, and no flash.
        self._detector = scenedetect.ContentDetector(threshold=_THRESHOLD, min_scene_len=0)
        self._time_code = scenedetect.FrameTimecode

    def find(self, ticks: NDArray[np.int64], frames: NDArray[np.uint8]) -> Iterator[float]:
        """Yield the times at which a shot begins, seconds.

        Args:
            ticks: Ticks of the frames, increasing ``[n]``.
            frames: RGB, ``[n, S, S, 3]``.
        """
        for tick, frame in zip(ticks.tolist(), frames, strict=True):
            time_code = self._time_code(tick, fps=self._rate)
            if self._detector.process_frame(time_code, np.ascontiguousarray(frame[..., ::-1])):
                yield tick / self._rate


class SnappedSpans:
    """The spans of windows, whose edges move to cuts; they still cover the whole video.

    A start moves to the nearest cut within half a stride, though not behind the end of the window
    before. An end moves to the last cut in its window's last half, though not before the start of
    the next window. The video's own start and end stay.
    """

    def __init__(self, spans: Sequence[tuple[float, float]], stride_s: float) -> None:
        """Take the plain spans. ``stride_s`` is 0 if nothing moves."""
        self._spans = spans
        self._reach_s = stride_s / 2
        self._number = 0
        self._start_s = spans[0][0]  # of the next span, moved
        self._cuts: deque[float] = deque()

    def add_cut(self, time_s: float) -> None:
        """Note that a shot begins."""
        self._cuts.append(time_s)

    def next(self, known_s: float) -> tuple[float, float] | None:
        """Return the next span, None if there is none or a cut from ``known_s`` on may move it."""
        if self._number == len(self._spans):
            return None
        end_s = self._spans[self._number][1]
        is_last = self._number + 1 == len(self._spans)
        following_s = np.inf if is_last else self._spans[self._number + 1][0]
        if known_s < (end_s if is_last else max(end_s, following_s + self._reach_s)):
            return None
        start_s = self._start_s
        if not is_last:
            self._start_s = self._moved(following_s, start_s, end_s)
            end_s = self._end(start_s, end_s)
        self._number += 1
        while self._cuts and self._cuts[0] < self._start_s - self._reach_s:
            self._cuts.popleft()
        return start_s, end_s

    def _moved(self, plain_s: float, before_s: float, end_s: float) -> float:
        """Move the start of the window behind one from ``before_s`` to ``end_s``."""
        reach_s = self._reach_s
        near = [
            cut
            for cut in self._cuts
            if plain_s - reach_s <= cut < plain_s + reach_s and before_s < cut <= end_s
        ]
        nearest = min(near, key=lambda cut: abs(cut - plain_s), default=plain_s)
        return max(nearest, before_s)

    def _end(self, start_s: float, end_s: float) -> float:
        """Move the end of the window that starts at ``start_s``."""
        if not self._reach_s:
            return end_s
        first_s = max(start_s + (end_s - start_s) / 2, self._start_s)
        return max((cut for cut in self._cuts if first_s <= cut <= end_s), default=end_s)
