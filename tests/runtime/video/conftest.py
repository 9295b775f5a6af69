"""Clips whose every frame carries its number in its pixels, and the way to the real clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from written_once import written_once

TESTS = Path(__file__).resolve().parents[2]
# A square of 4x4 blocks, one bit each. Reading at this size neither resizes nor crops.
SIDE = 96
BLOCK = SIDE // 4

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder writes to stderr otherwise


def numbered_picture(number: int, side: int = SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    bits = np.array([number >> bit & 1 for bit in range(16)], dtype=np.uint8).reshape(4, 4)
    return np.repeat(np.kron(bits * 255, np.ones((side // 4, side // 4), np.uint8)), 3).reshape(
        side, side, 3
    )


@pytest.fixture(scope="session")
def side() -> int:
    """Width and height of the numbered clips, pixels."""
    return SIDE


@pytest.fixture(scope="session")
def draw() -> Callable[[int], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Draw the picture of a number, [S, S, 3]."""
    return numbered_picture


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[Any], list[int]]:
    """Read the numbers back: [n, S, S, 3] -> n numbers."""

    def read(frames: Any) -> list[int]:
        count, size = frames.shape[:2]
        block = size // 4
        means = frames.reshape(count, 4, block, 4, block, 3).mean(axis=(2, 4, 5)).reshape(count, 16)
        assert (np.abs(means - 127.5) > 60).all(), "a block is neither black nor white"
        return [int(sum(1 << bit for bit in np.flatnonzero(row > 127))) for row in means]

    return read


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Encode frames that carry their numbers."""

    @written_once
    def write(
        path: Path,
        frame_count: int,
        *,
        codec: str = "libx264",
        rate: int | Fraction = 10,
        options: dict[str, str] | None = None,
        times: Sequence[int] | None = None,
        time_base: Fraction = Fraction(1, 1000),
        first_number: int = 0,
        first_time: int = 0,
        size: int = SIDE,
        pixel_format: str = "yuv420p",
        container_options: dict[str, str] | None = None,
        with_audio: bool = False,
    ) -> Path:
        with av.open(str(path), "w", container_options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.width = stream.height = size
            stream.pix_fmt = pixel_format
            stream.codec_context.thread_count = 1  # more threads make small pictures slower
            if times is not None:
                stream.codec_context.time_base = time_base
            audio = container.add_stream("aac", rate=44100) if with_audio else None
            for index in range(frame_count):
                picture = numbered_picture(first_number + index, size)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[index], time_base
                elif first_time:
                    frame.pts, frame.time_base = first_time + index, 1 / Fraction(rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if audio is not None:
                write_silence(container, audio, frame_count / float(rate))
        return path

    return write


def write_silence(container: Any, stream: Any, duration_s: float) -> None:
    for start in range(0, int(duration_s * 44100), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts = 44100, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.fixture(scope="session")
def write_audio() -> Callable[[Path], Path]:
    """Encode a second of silence."""

    def write(path: Path) -> Path:
        with av.open(str(path), "w") as container:
            write_silence(container, container.add_stream("aac", rate=44100), 1.0)
        return path

    return write


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips that the repository holds."""
    return TESTS / "clips"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def shared_clip() -> Callable[[str], Path]:
    """A clip of the full set of 22, some of which are too large for the repository."""

    def find(name: str) -> Path:
        for folder in (TESTS / "clips", TESTS.parents[1] / "shared" / "clips"):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{name} is neither in tests/clips nor in ../shared/clips")

    return find
