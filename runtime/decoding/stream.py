"""The frames of a long video on their way from a decoder to the thread that uses them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from xclip_deploy.errors import VideoError, VideoReadError
from xclip_deploy.runtime.decoding.channel import Channel, ProtocolError
from xclip_deploy.runtime.presentation import brief
from xclip_deploy.runtime.video import FrameBlock, VideoReading
from xclip_deploy.runtime.video.long_video import MAX_BLOCK_FRAMES, MAX_GAPS, Gap

BUFFERED_BLOCKS = 2
"""Blocks that wait for their user. The decoder waits while there are so many."""


class FrameStream:
    """A long video that is being decoded, as an iterator over its blocks.

    One thread uses it. Iteration raises VideoError where decoding fails; after its end, what was
    found of the file is known.
    """

    def __init__(self, duration_s: float, news: threading.Condition | None = None) -> None:
        """Begin an empty stream. ``news`` is notified of whatever comes."""
        self.duration_s = duration_s
        """Seconds from time 0 to the end of the last frame, as the packets tell."""
        self.warnings: tuple[str, ...] = ()
        """Faults of the file, one line each; complete once the blocks have ended."""
        self.gaps: tuple[Gap, ...] = ()
        """Times without frames because of damage, seconds; complete once the blocks have ended."""
        self._news = news or threading.Condition()
        self._blocks: deque[FrameBlock] = deque()
        self._error: VideoError | None = None
        self._is_complete = False
        self._is_closed = False

    def __repr__(self) -> str:
        return brief(self, duration_s=self.duration_s, has_ended=self.has_ended)

    @property
    def has_news(self) -> bool:
        """True if :meth:`poll` gives a block, raises, or has come to the end."""
        return bool(self._blocks) or self._is_complete or self._error is not None

    @property
    def has_ended(self) -> bool:
        """True once every block was taken."""
        return self._is_complete and not self._blocks

    def poll(self) -> FrameBlock | None:
        """Return the next block, None if there is none yet or none any more.

        Raises VideoError if decoding failed; blocks from before come first.
        """
        with self._news:
            if self._blocks:
                block = self._blocks.popleft()
                self._news.notify_all()
                return block
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[FrameBlock]:
        while not self.has_ended:
            with self._news:
                self._news.wait_for(lambda: self.has_news)
            block = self.poll()
            if block is not None:
                yield block

    def close(self) -> None:
        """Give the video up; the decoder stops at its next block."""
        with self._news:
            self._is_closed = True
            self._blocks.clear()
            if not self._is_complete and self._error is None:
                self._error = VideoReadError("the stream of frames was closed")
            self._news.notify_all()

    # The side of the decoder's thread

    def put(self, block: FrameBlock) -> bool:
        """Wait for room and add a block; return False if nobody wants it any more."""
        with self._news:
            self._news.wait_for(lambda: self._is_closed or len(self._blocks) < BUFFERED_BLOCKS)
            if not self._is_closed:
                self._blocks.append(block)
                self._news.notify_all()
            return not self._is_closed

    def complete(self, warnings: tuple[str, ...], gaps: tuple[Gap, ...]) -> None:
        """Note that the last block was added."""
        with self._news:
            self.warnings, self.gaps = warnings, gaps
            self._is_complete = True
            self._news.notify_all()

    def fail(self, error: VideoError) -> None:
        """Note that no more blocks come, and why."""
        with self._news:
            if self._error is None:
                self._error = error
            self._news.notify_all()


class BlockReceiver:
    """The messages of one long video, checked: the decoder may have gone mad over it."""

    def __init__(self, channel: Channel, reading: VideoReading, duration_s: float) -> None:
        self._channel = channel
        self._size = reading.image_size
        self._end = duration_s * reading.sampling.frames_per_second + 1
        self._tick = -1
        self._time_s = -math.inf
        self._cut_s = 0.0

    def block(self, answer: dict[str, Any], timeout_s: float) -> FrameBlock:
        """Read the frames that a message announces. Raises ProtocolError, ValueError, TypeError."""
        count, size = int(answer["block"]), self._size
        ticks, times_s = answer["ticks"], answer["times_s"]
        if not 1 <= count <= MAX_BLOCK_FRAMES or not count == len(ticks) == len(times_s):
            raise ProtocolError(
                f"{count} frames, expected 1 to {MAX_BLOCK_FRAMES} with their times"
            )
        cuts = tuple((float(start_s), int(first)) for start_s, first in answer["cuts"])
        if not _increases([self._cut_s, *(start_s for start_s, _ in cuts)]):
            raise ProtocolError("cuts that do not increase")
        if cuts:
            self._cut_s = cuts[-1][0]
        self._end += len(cuts)  # the last tick of each shot can be one that is not whole
        if not _increases([self._tick, *ticks]) or ticks[-1] > self._end:
            raise ProtocolError("numbers of frames that do not increase")
        if not _increases([self._time_s, *times_s]) or not math.isfinite(times_s[-1]):
            raise ProtocolError("times that do not increase")
        self._tick, self._time_s = int(ticks[-1]), float(times_s[-1])
        frames = self._channel.receive_frames((count, size, size, 3), timeout_s)
        gaps = check_gaps(answer["gaps"])
        return FrameBlock(
            np.array(ticks, np.int64), np.array(times_s, np.float64), frames, gaps, cuts
        )


def check_gaps(given: Any) -> tuple[Gap, ...]:  # noqa: ANN401 - what JSON holds
    """Return gaps as pairs of numbers. Raises ProtocolError, ValueError, TypeError."""
    gaps = tuple((float(start_s), float(end_s)) for start_s, end_s in given)
    if len(gaps) > MAX_GAPS or not all(
        math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s
        for start_s, end_s in gaps
    ):
        raise ProtocolError("gaps that are no spans of time")
    return gaps


def _increases(numbers: list[Any]) -> bool:
    return all(before < after for before, after in pairwise(numbers))
