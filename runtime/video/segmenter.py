"""Cut the stream of a long video's frames into windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.video.long_video import FrameBlock, Gap
from xclip_deploy.runtime.video.sampling import FrameSampling
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.runtime.video.shots import Cut, ShotSpans, check_scenedetect
from xclip_deploy.runtime.video.ticks import ROUNDING_S


@dataclass(frozen=True, eq=False)
class SegmentFrames:
    """The frames of one window."""

    start_s: float
    """Start of the window on the player's clock, seconds."""
    end_s: float
    """End of the window, seconds; the frame there belongs to it no more."""
    times_s: NDArray[np.float64]
    """Display times of the frames, increasing, seconds ``[n]``. The first can lie up to half an
    interval before the window, and further if it is still on display at its start."""
    frames: NDArray[np.uint8]
    """RGB, ``[n, S, S, 3]`` with ``1 <= n <= max_frames``."""
    numbers: NDArray[np.int64]
    """Ticks of the frames ``[n]``, as ``FrameBlock.ticks``."""


class _Kept(NamedTuple):
    position_s: float
    tick: int
    time_s: float
    frame: NDArray[np.uint8]


class Segmenter:
    """Windows of a long video, made while its blocks come in.

    A frame belongs to each window that its tick lies in, ``start <= k / frames_per_second < end``,
    where k counts from the start of its shot, if shots are found. Overlapping windows share
    frames. Only the frames of a window and of a block are held at a time. A window without a frame
    of its own takes the one that is on display at its start. One that begins in a gap, or before
    the first frame, is left out.
    """

    def __init__(
        self, segmentation: Segmentation, sampling: FrameSampling, duration_s: float
    ) -> None:
        """Plan the windows of a video of ``duration_s`` seconds.

        Raises:
            InvalidArgumentError: the video has too many windows.
            MissingExtraError: shots are wanted, and the package that finds them is not installed.
        """
        self._rate = sampling.frames_per_second
        self._most = sampling.max_frames
        self.left_out: list[tuple[float, float]] = []
        """Start and end of the windows without a frame, seconds."""
        if segmentation.kind == "shots":
            check_scenedetect()
        self._spans = ShotSpans(segmentation, duration_s)
        self._origin: Cut = (0.0, 0)
        self._cuts: deque[Cut] = deque()
        self._frames: deque[_Kept] = deque()
        self._on_display: _Kept | None = None
        self._gaps: list[Gap] = []

    def add(self, block: FrameBlock) -> Iterator[SegmentFrames]:
        """Take the next block, and yield the windows that are complete with it."""
        self._gaps += block.gaps
        for cut in block.cuts:
            self._cuts.append(cut)
            self._spans.add_cut(cut[0])
        for tick, time_s, frame in zip(
            block.ticks.tolist(), block.times_s.tolist(), block.frames, strict=True
        ):
            position_s = self._position_s(tick)
            yield from self._windows(position_s)
            self._frames.append(_Kept(position_s, tick, time_s, frame))

    def finish(self, gaps: Sequence[Gap] = ()) -> Iterator[SegmentFrames]:
        """Yield the remaining windows. ``gaps``: those of the whole video."""
        self._gaps = [*self._gaps, *gaps]
        yield from self._windows(np.inf)

    def _windows(self, until_s: float) -> Iterator[SegmentFrames]:
        """Yield the windows that no frame from ``until_s`` on belongs to or can change."""
        while (span := self._spans.next(until_s + ROUNDING_S)) is not None:
            start_s, end_s = span
            while self._frames and self._frames[0].position_s < start_s - ROUNDING_S:
                self._on_display = self._frames.popleft()
            # The next window can begin before this one ends, so frames stay until then.
            own = [kept for kept in self._frames if kept.position_s < end_s - ROUNDING_S]
            if not own and self._on_display is not None and not self._is_in_gap(start_s):
                own = [self._on_display]
            if not own:
                self.left_out.append((start_s, end_s))
                continue
            if len(own) > self._most:
                kept_ones = np.linspace(0, len(own) - 1, num=self._most, dtype=int)
                own = [own[number] for number in kept_ones.tolist()]
            yield SegmentFrames(
                start_s,
                end_s,
                np.array([kept.time_s for kept in own], np.float64),
                np.stack([kept.frame for kept in own]),
                np.array([kept.tick for kept in own], np.int64),
            )

    def _position_s(self, tick: int) -> float:
        """Return the time that a tick stands for; ticks come in order."""
        while self._cuts and self._cuts[0][1] <= tick:
            self._origin = self._cuts.popleft()
        start_s, first = self._origin
        return start_s + (tick - first) / self._rate

    def _is_in_gap(self, time_s: float) -> bool:
        self._gaps = [gap for gap in self._gaps if gap[1] > time_s]
        return any(start_s <= time_s for start_s, _ in self._gaps)
