"""Long videos read to their end: their frames, times, and the numbers in their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from xclip_deploy.runtime.video import (
    FrameSampling,
    LongVideo,
    Segmentation,
    VideoReading,
    read_blocks,
)
from xclip_deploy.runtime.video.long_video import MAX_BLOCK_FRAMES

READING = VideoReading(FrameSampling(max_frames=8), 96)
WINDOWS = Segmentation("windows", 8.0, 4.0)
RATE = 10  # of most files here, frames a second
KEYS = {"g": "20"}  # a key frame every two seconds
Write = Callable[..., Path]


class Read(NamedTuple):
    """All that came of a long video."""

    video: LongVideo
    ticks: list[int]
    times_s: list[float]
    numbers: list[int]  # read from the pictures


def reader(read_numbers: Callable[[Any], list[int]]) -> Callable[..., Read]:
    """Return a function that reads a long video; ``read_numbers`` reads its pictures."""

    def run(path: Path, reading: VideoReading = READING) -> Read:
        video = read_blocks(path, reading, WINDOWS)
        assert isinstance(video, LongVideo)
        found = Read(video, [], [], [])
        for block in video.blocks():
            assert 1 <= len(block.frames) <= MAX_BLOCK_FRAMES
            found.ticks.extend(block.ticks.tolist())
            found.times_s.extend(block.times_s.tolist())
            found.numbers.extend(read_numbers(block.frames))
        assert found.ticks == sorted(set(found.ticks))
        assert found.times_s == sorted(set(found.times_s))
        return found

    return run
