"""Read a video of any length, as one set of frames or as a stream of blocks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video.forward_reader import ForwardReader
from xclip_deploy.runtime.video.frames import VideoFrames, VideoReading
from xclip_deploy.runtime.video.media_policy import NO_POLICY
from xclip_deploy.runtime.video.packet_index import PacketIndex, index_packets
from xclip_deploy.runtime.video.pyav_container import open_video
from xclip_deploy.runtime.video.reading import read_frames
from xclip_deploy.runtime.video.segmentation import Segmentation
from xclip_deploy.runtime.video.shots import Cut, ShotDetector, ShotPicker
from xclip_deploy.runtime.video.taken_frames import TakenFrames
from xclip_deploy.runtime.video.ticks import Choice, choose_ticks
from xclip_deploy.runtime.video.timeline import PacketScan, Timeline, timeline_of

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

MAX_BLOCK_FRAMES = 64
"""Most frames of a block."""
_MAX_BLOCK_BYTES = 4 << 20
_MAX_BLOCK_S = 1.0  # of waiting for more frames
MAX_GAPS = 1000
"""Most gaps that are told apart; a file of more is damaged throughout."""
_NAMED_GAPS = 5
_DECORD = ("was read by PyAV in place of decord, which does not read long videos in windows",)

Gap = tuple[float, float]
"""Start and end of a time without frames, seconds on the player's clock."""


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """Frames of a long video that follow each other."""

    ticks: NDArray[np.int64]
    """Number k of each frame, strictly increasing ``[n]``: it stands for the time
    k / frames_per_second. In a shot that begins at ``(start_s, first)`` of ``cuts``, it stands for
    start_s + (k - first) / frames_per_second."""
    times_s: NDArray[np.float64]
    """Display times on the player's clock, strictly increasing, seconds ``[n]``."""
    frames: NDArray[np.uint8]
    """RGB, ``[n, S, S, 3]``, as ``VideoFrames.frames``; n is 1 to ``MAX_BLOCK_FRAMES``."""
    gaps: tuple[Gap, ...] = ()
    """Gaps that damage left, found since the block before; all up to the last frame are known."""
    cuts: tuple[Cut, ...] = ()
    """Starts of shots, found since the block before; all up to the last frame are known."""


class LongVideo:
    """A video that is read as a stream, once. Memory does not grow with its length."""

    def __init__(
        self,
        path: Path,
        reading: VideoReading,
        index: PacketIndex,
        timeline: Timeline,
        segmentation: Segmentation,
    ) -> None:
        self._path = path
        self._segmentation = segmentation
        self._reading = reading
        self._index = index
        self._timeline = timeline
        self.duration_s = duration_of(timeline, reading)
        """Seconds from time 0 to the end of the last frame, as the packets tell."""
        self.warnings: tuple[str, ...] = ()
        """Faults of the file, one line each; complete once the blocks have ended."""
        self.gaps: tuple[Gap, ...] = ()
        """Times without frames, because these are damaged; complete once the blocks have ended."""

    def blocks(self, alive: Callable[[], None] = lambda: None) -> Iterator[FrameBlock]:
        """Decode the video. ``alive`` is called for every packet, also where no frame comes out.

        Raises:
            VideoReadError: no frame can be decoded, or one cannot be converted to RGB.
            MissingExtraError: shots are wanted, and the package that finds them is not installed.
        """
        blocks = self._blocks(alive)
        while True:
            with (self._reading.policy or NO_POLICY).enforced():
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def _blocks(self, alive: Callable[[], None]) -> Iterator[FrameBlock]:
        rate = self._reading.sampling.frames_per_second
        ticks, numbers = choose_ticks(self._timeline.times_s, rate, self.duration_s)
        taken = TakenFrames(self._path, self._reading, self._index)
        detector = ShotDetector() if self._segmentation.kind == "shots" else None
        # A cut can lie before any frame.
        wanted = numbers if detector is None else None
        reader = ForwardReader(self._path, self._index, self._timeline, wanted, taken, alive)
        gaps = _Gaps(ticks, self._timeline, rate)
        picker: ShotPicker[VideoFrame] = ShotPicker(
            rate, self.duration_s, self._segmentation.stride_s or 0.0
        )
        block = _Block(self._reading.image_size)
        for time_s, frame in reader:
            if (before_s := gaps.note(time_s, taken.error_count)) is not None:
                picker.withdraw(before_s)  # damage begins within it, as a rule
            is_cut = detector is not None and detector.is_cut(time_s, frame)
            choice = picker.offer(time_s, frame, is_damaged=frame.is_corrupt, is_cut=is_cut)
            if choice is not None:
                block.add(choice, taken, gaps)
            if block.is_due:
                yield block.take(picker.take_cuts())
        if (before_s := gaps.finish(self.duration_s, taken.error_count)) is not None:
            picker.withdraw(before_s)
        choice = picker.finish()
        if choice is not None:
            block.add(choice, taken, gaps)
        if block.is_filled:
            yield block.take(picker.take_cuts())
        if not gaps.has_frames:
            reason = taken.last_error or "the video stream holds none"
            raise VideoReadError(f"{self._path}: no frame could be decoded ({reason})")
        self.gaps = tuple(gaps.found)
        self.warnings = (
            *(_DECORD if self._reading.reader == "decord" else ()),
            *self._timeline.warnings,
            *reader.warnings,
            *taken.warnings(),
            *gaps.describe(),
        )


def read_blocks(
    path: str | os.PathLike[str],
    reading: VideoReading,
    segmentation: Segmentation,
    alive: Callable[[], None] = lambda: None,
) -> VideoFrames | LongVideo:
    """Read one video: a short one at once, a long one as a stream.

    Long videos are decoded by PyAV whatever the reader of ``reading``, because decord neither
    knows timestamps nor survives damage; a warning says so.

    Args:
        path: A video file.
        reading: How the video is read. ``sampling.max_frames`` bounds short videos alone.
        segmentation: A video that it leaves whole is short.
        alive: Called for every packet while the file is looked at.

    Returns:
        The frames of :func:`read_frames` where the video is one segment. Else a
        :class:`LongVideo`, of which nothing is decoded yet.

    Raises:
        VideoError: as :func:`read_frames` raises it.
        MissingExtraError: the reader's package is not installed.
    """
    file = Path(path)
    if segmentation.window_s is None or not file.is_file() or file.stat().st_size == 0:
        return read_frames(file, reading)
    policy = reading.policy or NO_POLICY
    with policy.enforced():
        index, timeline = _index(file, alive)
        policy.check_duration(file, timeline.duration_s)
    if duration_of(timeline, reading) <= segmentation.window_s:
        # Timestamps that jump would count as a duration.
        return read_frames(file, replace(reading, policy=replace(policy, max_duration_s=None)))
    return LongVideo(file, reading, index, timeline, segmentation)


def _index(file: Path, alive: Callable[[], None]) -> tuple[PacketIndex, Timeline]:
    """Look at the packets of a file."""
    try:
        container, stream = open_video(file)
        scan = PacketScan()

        def note(packet: Packet[Any], is_shown: bool) -> None:
            alive()
            scan.note(packet, is_shown)

        with container:
            index = index_packets(container, stream, note)
            return index, timeline_of(container, stream, index, scan)
    except OSError as error:
        raise VideoReadError(f"{file}: cannot be read: {error.strerror or error}") from error


def duration_of(timeline: Timeline, reading: VideoReading) -> float:
    """Return the seconds of a video that are read."""
    end_s = reading.sampling.end_s
    if end_s is None:
        return timeline.duration_s
    return min(timeline.duration_s, float(int(end_s) + 1))


class _Block:
    """Frames that wait to be given."""

    def __init__(self, image_size: int) -> None:
        self._most = min(MAX_BLOCK_FRAMES, max(1, _MAX_BLOCK_BYTES // (3 * image_size**2)))
        self._choices: list[tuple[int, float, NDArray[np.uint8]]] = []
        self._gaps: list[Gap] = []
        self._since_s = 0.0

    def add(self, choice: Choice[VideoFrame], taken: TakenFrames, gaps: _Gaps) -> None:
        """Convert a frame and keep it."""
        if not self._choices:
            self._since_s = time.monotonic()
        taken.take(choice.tick, choice.frame)
        self._gaps += gaps.take()
        self._choices.append((choice.tick, choice.time_s, taken.pictures.pop(choice.tick)))

    @property
    def is_filled(self) -> bool:
        return bool(self._choices)

    @property
    def is_due(self) -> bool:
        count = len(self._choices)
        return count >= self._most or (
            count > 0 and time.monotonic() - self._since_s > _MAX_BLOCK_S
        )

    def take(self, cuts: tuple[Cut, ...]) -> FrameBlock:
        choices, self._choices = self._choices, []
        gaps, self._gaps = self._gaps, []
        return FrameBlock(
            np.array([tick for tick, _, _ in choices], np.int64),
            np.array([time_s for _, time_s, _ in choices], np.float64),
            np.stack([picture for _, _, picture in choices]),
            tuple(gaps),
            cuts,
        )


class _Gaps:
    """Times without frames: the file should have some there, and none could be decoded."""

    def __init__(self, expected: NDArray[np.int64], timeline: Timeline, rate: float) -> None:
        """Begin at time 0. ``expected``: the ticks that have a frame according to the file."""
        self.found: list[Gap] = []
        self.count = 0
        self.has_frames = False
        self._new: list[Gap] = []
        self._expected = expected
        self._losses = np.array(timeline.losses, np.float64).reshape(-1, 2)
        self._rate = rate
        self._tick = -1
        self._seen_s = 0.0
        self._errors = 0

    def note(self, time_s: float, errors: int) -> float | None:
        """Note that a frame was decoded, and how many errors there were by then.

        Returns the time of the frame before, if there is a gap between the two.
        """
        before_s = None
        tick = math.floor(time_s * self._rate + 0.5)
        if tick > self._tick + 1 and (
            self._is_expected(tick) or errors > self._errors or self._is_lost(time_s)
        ):
            before_s = self._add(time_s)
        self.has_frames = True
        self._tick, self._seen_s, self._errors = tick, time_s, errors
        return before_s

    def take(self) -> list[Gap]:
        """Return the gaps that are new."""
        new, self._new = self._new, []
        return new

    def finish(self, duration_s: float, errors: int) -> float | None:
        """Note that no more frames come; return as :meth:`note` does."""
        last = math.ceil(duration_s * self._rate)  # the first tick behind the end
        is_cut = errors > self._errors and last > self._tick + 1
        if self._is_expected(last) or is_cut:
            return self._add(duration_s)
        return None

    def _add(self, end_s: float) -> float:
        self.count += 1
        self._new.append((self._seen_s, end_s))
        if len(self.found) < MAX_GAPS:
            self.found.append((self._seen_s, end_s))
        return self._seen_s

    def _is_expected(self, tick: int) -> bool:
        """Return whether a tick between the last frame and ``tick`` has a frame in the file."""
        first = np.searchsorted(self._expected, self._tick, side="right")
        return bool(first < np.searchsorted(self._expected, tick))

    def _is_lost(self, time_s: float) -> bool:
        starts, ends = self._losses.T
        return bool(((starts >= self._seen_s - 1e-3) & (ends <= time_s + 1e-3)).any())

    def describe(self) -> Iterator[str]:
        """Say where the gaps are, one line each."""
        for start_s, end_s in self.found[:_NAMED_GAPS]:
            yield f"no frames between {time_text(start_s)} and {time_text(end_s)}: damaged"
        if self.count > _NAMED_GAPS:
            yield f"no frames at {self.count - _NAMED_GAPS} more places: damaged"
