"""Long videos through decoder processes: streams, backpressure, and decoders that fail midway."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from long_clips import SIDE, make_long, shade

from xclip_deploy.errors import VideoError, VideoReadError
from xclip_deploy.runtime.decoding import DecoderPool, FileChangedError, FileContent, FrameStream
from xclip_deploy.runtime.decoding.stream import BUFFERED_BLOCKS
from xclip_deploy.runtime.video import (
    FrameBlock,
    FrameSampling,
    LongVideo,
    Segmentation,
    VideoFrames,
    VideoReading,
    read_blocks,
)

READING = VideoReading(FrameSampling(max_frames=4), SIDE)
WINDOWS = Segmentation("windows", 4, 2)
# Larger pictures, so that a block has 6 of them and neither pipe nor buffer holds the whole video.
LARGE = VideoReading(FrameSampling(max_frames=4), 480)


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_long(tmp_path_factory.mktemp("long") / "ten.mp4", 600)


@pytest.fixture(scope="module")
def two_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of many more large blocks than the pipe and the buffer hold."""
    return make_long(tmp_path_factory.mktemp("long") / "two.mp4", 120)


def take(pool: DecoderPool[Path], path: Path, segmentation: Any = WINDOWS) -> FileContent:
    pool.submit(path, path, segmentation=segmentation)
    taken = pool.take(60)
    assert taken is not None
    if isinstance(taken[1], VideoError):
        raise taken[1]
    return taken[1]


def stream_of(pool: DecoderPool[Path], path: Path) -> FrameStream:
    frames = take(pool, path).frames
    assert isinstance(frames, FrameStream)
    return frames


def test_ten_minutes_come_as_they_are(ten_minutes: Path) -> None:
    expected = read_blocks(ten_minutes, READING, WINDOWS)
    assert isinstance(expected, LongVideo)
    blocks = list(expected.blocks())
    with DecoderPool[Path](READING, workers=1) as pool:
        content = take(pool, ten_minutes)
        assert content.size_bytes == ten_minutes.stat().st_size
        stream = content.frames
        assert isinstance(stream, FrameStream)
        assert stream.duration_s == expected.duration_s == 600
        found = list(stream)
        assert (stream.warnings, stream.gaps) == (expected.warnings, expected.gaps) == ((), ())
        # The decoder is ready for another.
        assert isinstance(take(pool, ten_minutes, None).frames, VideoFrames)
    ticks = np.concatenate([block.ticks for block in found])
    assert ticks.tolist() == list(range(600))
    for name in ("ticks", "times_s", "frames"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(block, name) for block in found]),
            np.concatenate([getattr(block, name) for block in blocks]),
        )
    brightness = np.concatenate([block.frames for block in found]).mean((1, 2, 3))
    np.testing.assert_allclose(brightness, [shade(tick) for tick in ticks], atol=2.5)


def test_a_video_of_one_window_comes_whole(tmp_path: Path) -> None:
    path = make_long(tmp_path / "short.mp4", 4)
    with DecoderPool[Path](READING, workers=1) as pool:
        assert isinstance(take(pool, path).frames, VideoFrames)


def test_the_decoder_waits_for_its_user(two_minutes: Path) -> None:
    limit_s = 2.0
    with DecoderPool[Path](LARGE, workers=1, timeout_s=limit_s) as pool:
        stream = stream_of(pool, two_minutes)
        (process,) = pool._running
        deadline = time.monotonic() + 60
        before, state = 0, "R"
        # Until it sleeps without working, for longer than it may be silent.
        while (now := _clock_ticks_and_state(process.pid)) != (before, "S") or state != "S":
            assert time.monotonic() < deadline, "the decoder goes on although nobody reads"
            before, state = now
            time.sleep(1.5 * limit_s)
        assert len(stream._blocks) == BUFFERED_BLOCKS
        assert sum(len(block.ticks) for block in stream) == 120


def _clock_ticks_and_state(pid: int) -> tuple[int, str]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), fields[0]


def test_a_decoder_that_is_killed_midway_costs_that_video(two_minutes: Path) -> None:
    with DecoderPool[Path](LARGE, workers=2) as pool:
        streams = [stream_of(pool, two_minutes), stream_of(pool, two_minutes)]
        starts = [len(next(iter(stream)).ticks) for stream in streams]
        victim = next(iter(pool._running))
        os.kill(victim.pid, signal.SIGKILL)
        counts, errors = [], []
        for count, stream in zip(starts, streams, strict=True):
            try:
                rest = 0
                for block in stream:
                    rest += len(block.ticks)
            except VideoReadError as error:
                errors.append(str(error))
            counts.append(count + rest)
        (message,) = errors
        assert message.startswith(f"{two_minutes}: the decoder ended while it read it (SIGKILL")
        assert sorted(counts)[1] == 120
        assert 0 < min(counts) < 120
        assert isinstance(take(pool, two_minutes, None).frames, VideoFrames)


def test_take_returns_when_a_stream_has_something(ten_minutes: Path) -> None:
    with DecoderPool[Path](READING, workers=1) as pool:
        stream = stream_of(pool, ten_minutes)
        count = 0
        while not stream.has_ended:
            assert pool.take(60, [stream]) is None
            block = stream.poll()
            count += 0 if block is None else len(block.ticks)
        assert count == 600


def test_closing_ends_what_nobody_wants(two_minutes: Path) -> None:
    with DecoderPool[Path](LARGE, workers=1) as pool:
        stream = stream_of(pool, two_minutes)
        stream.close()
        with pytest.raises(VideoReadError, match="closed"):
            stream.poll()
        assert isinstance(take(pool, two_minutes, None).frames, VideoFrames)
        left = stream_of(pool, two_minutes)
    assert not left._blocks
    assert not [t for t in threading.enumerate() if t.name.startswith("decoder-")]


@pytest.fixture(scope="session")
def midway(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A decoder that does in the middle of a long video what the file's name says."""
    script = tmp_path_factory.mktemp("worker") / "midway.py"
    script.write_text(MIDWAY)
    return (sys.executable, str(script))


MIDWAY = """
import dataclasses, os, time
import numpy as np
from xclip_deploy.runtime.decoding import worker
from xclip_deploy.runtime.video import LongVideo

blocks = LongVideo.blocks

def misbehave(video, alive):
    name = video._path.name
    for n, block in enumerate(blocks(video, alive)):
        if n == 2 and "crash" in name:
            os._exit(3)
        if n == 2 and "hang" in name:
            time.sleep(1000)
        if n == 2 and "slow" in name:
            for _ in range(30):
                time.sleep(0.1)
                alive()
        if n == 2 and "mistake" in name:
            raise ValueError("a library's mistake")
        if n == 2 and "grow" in name:
            with video._path.open("ab") as file:
                file.write(b"more")
        if n == 2 and "again" in name:
            yield block
        if n == 2 and "nan" in name:
            block.times_s[-1] = np.nan
        if n == 2 and "many" in name:
            block = dataclasses.replace(block, frames=block.frames.repeat(70, 0))
        if n == 2 and "gap" in name:
            block = dataclasses.replace(block, gaps=((3.0, 2.0),))
        if n == 2 and "far" in name:
            block.ticks[-1] = 1 << 40
        yield block

LongVideo.blocks = misbehave
worker.main()
"""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("crash", r"the decoder ended while it read it \(exit status 3\)"),
        ("hang", r"was not read within 2 s and was given up"),
        ("mistake", r"cannot be read: ValueError: a library's mistake"),
        ("grow", r"changed while it was read"),
        ("again", r"the decoder answered with numbers of frames that do not increase"),
        ("nan", r"the decoder answered with times that do not increase"),
        ("many", r"the decoder answered with \d+ frames, expected 1 to 64 with their times"),
        ("gap", r"the decoder answered with gaps that are no spans of time"),
        ("far", r"the decoder answered with numbers of frames that do not increase"),
    ],
)
def test_a_failure_midway_costs_that_video(
    name: str, error: str, midway: tuple[str, ...], tmp_path: Path
) -> None:
    path, good = make_long(tmp_path / f"{name}.mp4", 24), make_long(tmp_path / "good.mp4", 24)
    # On a machine that does other work, an answer of 300 MB can take seconds.
    timeout_s = 2 if name == "hang" else 60
    with DecoderPool[Path](LARGE, workers=1, timeout_s=timeout_s, command=midway) as pool:
        stream = stream_of(pool, path)
        found: list[FrameBlock] = []
        with pytest.raises(VideoReadError, match=error) as caught:
            found.extend(stream)
        assert str(caught.value).startswith(f"{path}: ")
        assert isinstance(caught.value, FileChangedError) == (name == "grow")
        assert len(found) >= 2
        assert sum(len(block.ticks) for block in stream_of(pool, good)) == 24


def test_slow_is_not_silent(midway: tuple[str, ...], tmp_path: Path) -> None:
    """Decoding can take longer than the limit where signs of life come."""
    path = make_long(tmp_path / "slow.mp4", 60)
    with DecoderPool[Path](LARGE, workers=1, timeout_s=2, command=midway) as pool:
        assert sum(len(block.ticks) for block in stream_of(pool, path)) == 60


def test_streams_of_several_videos_run_at_once(make: Callable[..., Path], tmp_path: Path) -> None:
    paths = [make_long(tmp_path / f"{n}.mp4", 20 + n) for n in range(4)]
    short = make("short.mp4", 1)
    with DecoderPool[Path](READING, workers=2) as pool:
        for path in (*paths, short):
            pool.submit(path, path, segmentation=WINDOWS)
        counts: dict[str, int] = {}
        open_streams: dict[str, FrameStream] = {}
        while pool.in_flight or open_streams:
            taken = pool.take(60, open_streams.values())
            if taken is not None:
                assert isinstance(taken[1], FileContent)
                frames = taken[1].frames
                if isinstance(frames, FrameStream):
                    open_streams[taken[0].name] = frames
                    assert len(open_streams) <= 2
                else:
                    counts[taken[0].name] = -1
            for name, stream in list(open_streams.items()):
                block = stream.poll()
                counts[name] = counts.get(name, 0) + (0 if block is None else len(block.ticks))
                if stream.has_ended:
                    del open_streams[name]
    assert counts == {**{f"{n}.mp4": 20 + n for n in range(4)}, "short.mp4": -1}
