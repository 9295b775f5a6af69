"""Shots of long videos: each one is cut into windows as if it were a file of its own.

A window across a cut shows two events, and resembles the captions of others. So with shots as
hints, windows begin at cuts and end at cuts, and the clock of the frames begins anew at each. A
fixed camera has no cuts, and gets the plain windows.

The detector is PySceneDetect's, fed with the frames that are decoded anyway.
"""

from __future__ import annotations

import importlib
from collections import deque
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.runtime.video.ticks import ROUNDING_S, Choice, Frame, TickPicker

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Cut = tuple[float, int]
"""Start of a shot on the player's clock, seconds, and the tick of its first frame."""

_THRESHOLD = 0.3
"""Least change of the histogram of brightness, 1 less the correlation. At a cut, the whole picture
changes; a thing that appears changes a part of it."""
_BINS = 64
_MOST_RATE = 12.0
"""Most frames a second that the detector sees."""
_WIDTH = 160
"""Most columns of pixels that the detector sees."""


def check_scenedetect() -> None:
    """Raise MissingExtraError if PySceneDetect is not installed. Nothing is imported."""
    try:
        is_there = find_spec("scenedetect") is not None
    except ValueError:
        is_there = False
    if not is_there:
        raise MissingExtraError("scenedetect", "shots", "Segments at shots")


class ShotDetector:
    """Cuts between decoded frames that come one after the other."""

    def __init__(self) -> None:
        """Load the detector. Raises MissingExtraError."""
        check_scenedetect()
        scenedetect: Any = importlib.import_module("scenedetect")
        self._detector = scenedetect.HistogramDetector(_THRESHOLD, _BINS, min_scene_len=0)
        self._time_code = scenedetect.FrameTimecode
        self._number = 0
        self._next_s = 0.0

    def is_cut(self, time_s: float, frame: VideoFrame) -> bool:
        """Return whether a shot begins with this frame, displayed at ``time_s`` seconds."""
        import av

        if time_s < self._next_s or frame.is_corrupt:
            return False
        self._next_s = time_s + 1 / _MOST_RATE - ROUNDING_S
        width = min(_WIDTH, frame.width)
        height = max(1, round(frame.height * width / frame.width))
        try:
            small = frame.reformat(width, height, "bgr24", interpolation="BILINEAR").to_ndarray()
        except (av.FFmpegError, ValueError):
            return False  # a frame that cannot be converted is an error where it is taken
        self._number += 1
        time_code = self._time_code(self._number, fps=_MOST_RATE)
        return bool(self._detector.process_frame(time_code, small))


class ShotPicker(Generic[Frame]):
    """A choice of frames whose clock begins anew at every cut.

    A shot is sampled as a file of its own would be: its first frame stands for its first tick.
    Shots are at least half a stride long, so that cuts at most double the segments. Ticks are
    numbered through the whole video.
    """

    def __init__(self, frames_per_second: float, end_s: float, stride_s: float) -> None:
        """Begin the first shot at time 0 of a video that ends at ``end_s`` seconds."""
        self._rate = frames_per_second
        self._end_s = end_s
        self._least_s = stride_s / 2
        self._start_s = 0.0
        self._first = 0  # tick of the shot's first frame
        self._next = 0  # tick behind the last that was emitted
        self._picker: TickPicker[Frame] = TickPicker(frames_per_second, end_s)
        self._cuts: list[Cut] = []

    def offer(
        self, time_s: float, frame: Frame, *, is_damaged: bool, is_cut: bool
    ) -> Choice[Frame] | None:
        """Take the next frame, and return the choice for an earlier tick once it is certain.

        ``is_cut``: whether a shot begins with this frame.
        """
        certain = None
        is_apart = min(time_s - self._start_s, self._end_s - time_s) >= self._least_s
        if is_cut and is_apart:
            certain = self._finish_shot(time_s)
            self._start_s, self._first = time_s, self._next
            self._picker = TickPicker(self._rate, self._end_s - time_s)
            self._cuts.append((time_s, self._next))
        found = self._picker.offer(time_s - self._start_s, frame, is_damaged=is_damaged)
        return certain if found is None else self._numbered(found)

    def withdraw(self, time_s: float) -> None:
        """Drop the choice that is still open if it is the frame of this time."""
        self._picker.withdraw(time_s - self._start_s)

    def finish(self) -> Choice[Frame] | None:
        """Return the choice that is still open, if any."""
        found = self._picker.finish()
        return None if found is None else self._numbered(found)

    def take_cuts(self) -> tuple[Cut, ...]:
        """Return the cuts that are new."""
        cuts, self._cuts = self._cuts, []
        return tuple(cuts)

    def _finish_shot(self, cut_s: float) -> Choice[Frame] | None:
        found = self._picker.finish()
        if found is None or found.tick / self._rate >= cut_s - self._start_s - ROUNDING_S:
            return None  # its tick lies in the next shot
        return self._numbered(found)

    def _numbered(self, choice: Choice[Frame]) -> Choice[Frame]:
        tick = self._first + choice.tick
        self._next = tick + 1
        return Choice(tick, self._start_s + choice.time_s, choice.frame)


class ShotSpans:
    """The spans of windows, made while cuts come in. No window lies across a cut.

    A shot no longer than a window is one segment. A longer one is cut as a video of its length.
    """

    def __init__(self, segmentation: Segmentation, duration_s: float) -> None:
        """Begin at time 0. Raises InvalidArgumentError for more than ``MAX_SEGMENTS``."""
        segmentation.spans(duration_s)  # too many are refused before anything is decoded
        self._segmentation = segmentation
        self._duration_s = duration_s
        self._start_s = 0.0  # of the shot
        self._number = 0  # of the next window in the shot
        self._cuts: deque[float] = deque()

    def add_cut(self, time_s: float) -> None:
        """Note that a shot begins."""
        self._cuts.append(time_s)

    def next(self, known_s: float) -> tuple[float, float] | None:
        """Return the next span that ends by ``known_s``, up to which all cuts are known."""
        while self._start_s < self._duration_s:
            end_s = self._cuts[0] if self._cuts else self._duration_s
            if not self._cuts and known_s < self._duration_s:
                return self._whole_window(known_s)
            spans = self._segmentation.spans(end_s - self._start_s)
            if self._number < len(spans):
                start_s, stop_s = spans[self._number]
                if known_s < self._start_s + stop_s:
                    return None
                self._number += 1
                return self._start_s + start_s, self._start_s + stop_s
            self._start_s, self._number = end_s, 0
            if self._cuts:
                self._cuts.popleft()
        return None

    def _whole_window(self, known_s: float) -> tuple[float, float] | None:
        """Return the next window of a shot whose end is not known, if it ends by ``known_s``."""
        window_s, stride_s = self._segmentation.window_s, self._segmentation.stride_s
        assert window_s is not None  # videos that stay whole are not read in windows
        assert stride_s is not None
        start_s = self._start_s + self._number * stride_s
        if known_s < start_s + window_s or self._duration_s < start_s + window_s:
            return None
        self._number += 1
        return start_s, start_s + window_s
