"""Open the file that a moment lies in, and decode the frames of some of its seconds.

Times are those of a player: 0 is the start of the file's earliest stream. A frame is on display
until the next one, so the first frame of a range is the one that its start finds on display.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.errors import (
    InvalidArgumentError,
    MomentSourceError,
    VideoNotFoundError,
    VideoReadError,
)
from xclip_deploy.runtime.arguments import PathName, as_number, as_path
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video.packet_index import PacketIndex, index_packets
from xclip_deploy.runtime.video.pyav_container import open_video, read_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from xclip_deploy.runtime.gallery.records import VideoFile

TOLERANCE_S = 0.001
"""Times closer than this are one. Matroska keeps whole milliseconds."""
_BEYOND_END_S = 0.1
"""Rounding of an end that a user types: times are shown with one decimal."""
_SEEKABLE_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# A gap in a video whose steps from frame to frame are otherwise equal is damage.
_GAP_S, _GAP_FRAMES = 0.5, 5
_CONSTANT_SHARE = 0.95
_LEAST_FRAMES = 20
_FALLBACK_FRAME_RATE = 25.0  # FFmpeg's, for streams without rate and timestamps
STEPS_BACK: tuple[int | None, ...] = (0, 2, None)
"""Starts of successive tries: the key frame before, the third before, and the file's start."""


class UnsoundError(VideoReadError):
    """Frames of a range are missing or damaged when decoding begins where it did."""


class _Facts(NamedTuple):
    """What reading the packets of a file once tells about it."""

    packets: PacketIndex
    formats: frozenset[str]  # FFmpeg's names of the container
    num_sounds: int
    start_s: float  # of the container, on the clock of its timestamps


# Reading an hour takes two seconds, and several moments of one video are asked for in a row.
@lru_cache(maxsize=8)
def _facts(path: Path, state: tuple[int, int, int]) -> _Facts:
    """Read the packets of a file. ``state``: its size, time and number, so that it is the same."""
    del state
    container, stream = open_video(path)
    with container:
        return _Facts(
            index_packets(container, stream),
            frozenset(container.format.name.split(",")),
            len(container.streams.audio),
            (container.start_time or 0) / 1e6,
        )


class MomentSource:
    """A video file, with the times of its frames.

    Raises:
        VideoNotFoundError: there is no file at ``path``.
        MomentSourceError: the file is gone, or not the one that ``expected`` describes.
        VideoReadError: the file is no video.
    """

    def __init__(self, path: PathName, expected: VideoFile | None = None) -> None:
        self.path = as_path("path", path)
        self._expected = expected
        self._state = self._checked_state()
        facts = _facts(self.path.absolute(), self._state)
        self.index: PacketIndex = facts.packets
        self.num_sounds = facts.num_sounds
        self.has_sound = facts.num_sounds > 0
        self.is_mov = "mov" in facts.formats
        self.is_seekable = not _SEEKABLE_FORMATS.isdisjoint(facts.formats)
        index = self.index
        first = int(index.timestamps[0]) if len(index.timestamps) else 0
        has_clock = len(index.timestamps) > 0 and index.time_base > 0
        self._first = first
        self.zero_s = (first * index.time_base - index.start_s) if has_clock else facts.start_s
        """Time 0 on the clock of the file's timestamps, seconds."""
        ticks = (index.timestamps - first).astype(np.float64)
        self.times_s: NDArray[np.float64] = index.start_s + ticks * index.time_base
        """Times of the frames, ``[n]``; empty or in part wrong unless the index is reliable."""
        self.warnings: dict[str, None] = dict.fromkeys(index.warnings)
        """What is wrong with the file and was met so far, in order, one line each."""

    @property
    def length_s(self) -> float:
        """Time at which the last frame ends, seconds."""
        index = self.index
        rate = index.frame_rate or _FALLBACK_FRAME_RATE
        if index.is_reliable:
            return index.end_s
        if index.is_in_decoding_order and len(self.times_s):
            return float(self.times_s[-1]) + 1 / rate
        return index.packet_count / rate

    def check_unchanged(self) -> None:
        """Raise MomentSourceError if the file was replaced or written since it was opened."""
        if self._checked_state() != self._state:
            raise MomentSourceError(
                f"{self.path}: changed while it was read; expected a file that stays as it is"
            )

    def clipped(self, start_s: object, end_s: object, pad_s: float = 0.0) -> tuple[float, float]:
        """Check a range, and return it with ``pad_s`` more seconds at both ends, where there are.

        Raises InvalidArgumentError for a range that is empty, reversed or outside the video.
        """
        start, end = as_number("start_s", start_s), as_number("end_s", end_s)
        length_s = self.length_s
        shown = f"from {shown_time(start)} to {shown_time(end)}"
        if end <= start:
            what = "is empty" if end == start else "ends before it starts"
            raise InvalidArgumentError(f"the range {shown} {what}; {self._length}")
        if start < 0 or start >= length_s or end > length_s + _BEYOND_END_S:
            raise InvalidArgumentError(f"the range {shown} lies outside the video; {self._length}")
        return max(0.0, start - pad_s), min(length_s, end + pad_s)

    def checked_time(self, time_s: object) -> float:
        """Check a time in the video. Its end counts. Raises InvalidArgumentError."""
        time, length_s = as_number("time_s", time_s), self.length_s
        if not 0 <= time <= length_s + _BEYOND_END_S:
            raise InvalidArgumentError(
                f"the time {shown_time(time)} lies outside the video; {self._length}"
            )
        return time

    @property
    def _length(self) -> str:
        return f"{self.path} is {shown_time(self.length_s)} long ({self.length_s:.3f} s)"

    def key_frame(self, time_s: float) -> int | None:
        """Return the position of the last key frame at or before a time; None if there is none."""
        times = [self.time_of(pts) for pts, _ in self.index.keyframes]
        position = int(np.searchsorted(times, time_s + TOLERANCE_S, "right")) - 1
        return position if position >= 0 else None

    def time_of(self, timestamp: int) -> float:
        """Return the time of a timestamp of the video stream, seconds."""
        return self.index.start_s + (timestamp - self._first) * self.index.time_base

    def shown(
        self, start_s: float, end_s: float, back: int | None = 0
    ) -> Iterator[tuple[float, VideoFrame]]:
        """Decode the frame on display at ``start_s``, and all that appear before ``end_s``.

        Args:
            back: Number of key frames to go back further than needed; None decodes from the
                file's start. Only 0 is strict; else what is damaged is noted and left out.

        Yields:
            Time and frame. The first time may lie before ``start_s``.

        Raises:
            UnsoundError: ``back`` is 0, and a frame is missing or damaged.
            VideoReadError: the file can no longer be opened.
        """
        wanted = self._wanted(start_s, end_s)
        due = wanted if back == 0 else None  # frames that must come, in order
        count = 0
        for time_s, frame in self._from_start(
            start_s, self._decoded(start_s, back, is_strict=due is not None)
        ):
            if count and time_s >= end_s - TOLERANCE_S:
                break
            if due is not None and time_s != due[min(count, len(due) - 1)]:
                raise UnsoundError(f"{self.path}: a frame is missing before {shown_time(time_s)}")
            count += 1
            yield time_s, frame
            if wanted is not None and time_s >= wanted[-1]:
                break
        if due is not None and count != len(due):
            raise UnsoundError(f"{self.path}: frames are missing before {shown_time(end_s)}")

    def _from_start(
        self, start_s: float, frames: Iterator[tuple[float, VideoFrame]]
    ) -> Iterator[tuple[float, VideoFrame]]:
        """Drop the frames before the one that is on display at ``start_s``."""
        shown_s = self.shown_since(start_s)
        before: tuple[float, VideoFrame] | None = None
        for time_s, frame in frames:
            if time_s <= start_s + TOLERANCE_S:
                before = time_s, frame
                if time_s != shown_s:
                    continue
            if before is not None:
                yield before
                if before[0] == time_s:
                    before = None
                    continue
                before = None
            yield time_s, frame
        if before is not None:
            yield before

    def note_gaps(self, start_s: float, end_s: float) -> None:
        """Warn of times in a range from which a video of constant rate has no frames."""
        if not self.index.is_reliable or len(self.times_s) < _LEAST_FRAMES:
            return
        steps = np.diff(self.times_s)
        usual = float(np.median(steps))
        is_usual = np.abs(steps - usual) < usual / 2
        if float(is_usual.mean()) < _CONSTANT_SHARE:
            return  # pauses belong to a variable rate
        for number in np.flatnonzero(steps > max(_GAP_S, _GAP_FRAMES * usual)):
            first, last = float(self.times_s[number]), float(self.times_s[number + 1])
            if first < end_s and last > start_s:
                self.warnings[
                    f"frames are missing from {shown_time(first)} to {shown_time(last)}"
                ] = None

    def count(self, start_s: float, end_s: float) -> int | None:
        """Return how many frames a range has; None where only decoding tells it."""
        wanted = self._wanted(start_s, end_s)
        return None if wanted is None else len(wanted)

    def shown_since(self, time_s: float) -> float | None:
        """Return when the frame on display at a time appeared; None if nothing tells it."""
        wanted = self._wanted(time_s, time_s)
        return None if wanted is None else float(wanted[0])

    def _wanted(self, start_s: float, end_s: float) -> NDArray[np.float64] | None:
        """Return the times of the frames of a range, or None where timestamps do not tell."""
        if not self.index.is_reliable:
            return None
        first = int(np.searchsorted(self.times_s, start_s + TOLERANCE_S, "right")) - 1
        end = int(np.searchsorted(self.times_s, end_s - TOLERANCE_S, "left"))
        first = max(first, 0)
        return self.times_s[first : max(end, first + 1)]

    def _decoded(
        self, start_s: float, back: int | None, *, is_strict: bool
    ) -> Iterator[tuple[float, VideoFrame]]:
        position = self.key_frame(start_s) if self.index.is_reliable else None
        if position is not None:
            position = None if back is None or position < back else position - back
        container, stream = open_video(self.path)
        with container:
            skipping = self._go_to(container, stream, position)
            frames = self._frames(container, stream, skipping, is_strict=is_strict)
            last_s = -np.inf
            for number, frame in enumerate(frames):
                time_s = self._time_of_frame(number, frame)
                if time_s is None or time_s <= last_s:
                    if is_strict:
                        raise UnsoundError(f"{self.path}: frames are out of order")
                    continue
                last_s = time_s
                yield time_s, frame

    def _go_to(
        self, container: InputContainer, stream: VideoStream, position: int | None
    ) -> tuple[int, int] | None:
        """Seek to a key frame. Return it where packets before it must be skipped instead."""
        import av

        if position is None:
            return None
        pts, dts = self.index.keyframes[position]
        if not self.is_seekable:
            return pts, dts
        try:
            container.seek(dts if self.is_mov else pts, stream=stream)
        except av.FFmpegError as error:
            raise UnsoundError(f"{self.path}: {error.strerror or error}") from error
        return None

    def _frames(
        self,
        container: InputContainer,
        stream: VideoStream,
        skipping: tuple[int, int] | None,
        *,
        is_strict: bool,
    ) -> Iterator[VideoFrame]:
        packets = self._noted(read_packets(container, stream), is_strict=is_strict)
        for packet in packets:
            if skipping is not None:
                dts = packet.dts if packet.dts is not None else packet.pts
                if (packet.pts, dts) != skipping:
                    continue
                skipping = None
            yield from self._decode(stream, packet, is_strict=is_strict)
        yield from self._decode(stream, None, is_strict=is_strict)

    def _noted(self, packets: Iterator[Any], *, is_strict: bool) -> Iterator[Any]:
        import av

        try:
            yield from packets
        except av.FFmpegError as error:
            self._note(error, is_strict=is_strict)

    def _decode(
        self,
        stream: VideoStream,
        packet: Packet[Any] | None,
        *,
        is_strict: bool,
    ) -> Iterator[VideoFrame]:
        import av

        try:
            frames = stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except av.FFmpegError as error:
            self._note(error, is_strict=is_strict)
            return
        for frame in frames:
            if frame.is_corrupt:
                if is_strict:
                    raise UnsoundError(f"{self.path}: a frame is damaged")
                self.warnings["frames are damaged and were concealed"] = None
            yield frame

    def _note(self, error: Exception, *, is_strict: bool) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        if is_strict:
            raise UnsoundError(f"{self.path}: {reason}") from error
        self.warnings[f"packets could not be decoded ({reason})"] = None

    def _time_of_frame(self, number: int, frame: VideoFrame) -> float | None:
        if self.index.is_in_decoding_order:
            return float(self.times_s[number]) if number < len(self.times_s) else None
        if frame.pts is not None and self.index.time_base > 0:
            return self.time_of(frame.pts)
        if self.index.is_reliable:
            return None
        return number / (self.index.frame_rate or _FALLBACK_FRAME_RATE)

    def _checked_state(self) -> tuple[int, int, int]:
        expected = self._expected
        try:
            if not self.path.is_file() and self.path.exists():
                raise VideoReadError(f"{self.path}: is no regular file; expected a video")
            status = self.path.stat()
        except FileNotFoundError as error:
            if expected is None:
                raise VideoNotFoundError(f"{self.path}: no such file; expected a video") from error
            raise MomentSourceError(
                f"{self.path}: is gone since it was indexed; put it back, or run: "
                f"{_index_command(self.path)}"
            ) from error
        except OSError as error:
            raise VideoReadError(f"{self.path}: cannot be read: {error.strerror}") from error
        if expected is not None and (
            expected.size_bytes not in (None, status.st_size)
            or expected.modified_ns not in (None, status.st_mtime_ns)
        ):
            raise MomentSourceError(
                f"{self.path}: changed since it was indexed, so its moments may lie elsewhere; "
                f"run: {_index_command(self.path)}"
            )
        if status.st_size == 0:
            raise VideoReadError(f"{self.path}: is empty (0 bytes); expected a video file")
        return status.st_size, status.st_mtime_ns, status.st_ino


def _index_command(path: Path) -> str:
    return f"xclip-deploy index {os.fspath(path.parent)} --gallery PATH"


def shown_time(seconds: float) -> str:
    """Return a time with one decimal, and more digits where that would show another second."""
    return f"-{time_text(-seconds, 1)}" if seconds < 0 else time_text(seconds, 1)
