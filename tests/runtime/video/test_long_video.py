"""Long videos as streams of blocks: which frames come, when they are shown, what damage costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from long_videos import KEYS, RATE, READING, WINDOWS, Read, Write, reader

from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.video import (
    FrameSampling,
    LongVideo,
    Segmentation,
    VideoFrames,
    VideoReading,
    read_blocks,
    read_frames,
)


@pytest.fixture
def read(read_numbers: Callable[[Any], list[int]]) -> Callable[..., Read]:
    return reader(read_numbers)


CONTAINERS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "plain.mkv": {},
    "plain.ts": {},
    "plain.flv": {},
    "b_frames.avi": {},
    "many_b_frames.avi": {"options": {"bf": "16", "b_strategy": "0"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"qscale": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=0"}},
}
EVERY_DAY = {"plain.mp4", "plain.ts", "b_frames.avi", "vp8.webm"}


@pytest.mark.parametrize(
    "name",
    # One without an index, one without timestamps of its own, and each codec of the day.
    [
        pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow)
        for name in CONTAINERS
    ],
)
def test_each_second_gives_the_frame_that_is_shown_then(
    name: str, write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / name, 420, rate=RATE, **CONTAINERS[name])
    found = read(path)
    assert found.ticks == list(range(42))
    assert found.numbers == [RATE * tick for tick in found.ticks]
    np.testing.assert_allclose(found.times_s, found.ticks, atol=0.0021)
    assert found.video.duration_s == pytest.approx(42, abs=0.01)
    assert (found.video.gaps, found.video.warnings) == ((), ())


@pytest.mark.parametrize(("frames_per_second", "step"), [(0.5, 20), (2, 5), (3, None), (10, 1)])
def test_other_rates(
    frames_per_second: float,
    step: int | None,
    write_clip: Write,
    read: Callable[..., Read],
    tmp_path: Path,
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 300, rate=RATE)
    sampling = FrameSampling(frames_per_second=frames_per_second, max_frames=8)
    found = read(path, VideoReading(sampling, 96))
    assert len(found.ticks) == 30 * frames_per_second
    nominal = np.array(found.ticks) / frames_per_second
    assert np.abs(np.array(found.numbers) / RATE - nominal).max() <= 0.5 / RATE + 1e-9
    if step is not None:
        assert found.numbers == list(range(0, 300, step))


def test_a_raw_stream_is_counted(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    found = read(write_clip(tmp_path / "clip.h264", 500, rate=25))
    assert found.numbers == list(range(0, 500, 25))
    assert found.times_s == found.ticks == list(range(20))
    assert found.video.warnings == ("has no timestamps: times are counted at 25 frames a second",)


@pytest.mark.parametrize("end_s", [8.0, 3.0])
def test_a_short_video_is_read_as_before(end_s: float, write_clip: Write, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", int(end_s * RATE), rate=RATE)
    found, expected = read_blocks(path, READING, WINDOWS), read_frames(path, READING)
    assert isinstance(found, VideoFrames)
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.times_s, expected.times_s)
    assert found.duration_s == expected.duration_s


def test_whole_and_cut_off_videos_are_short(write_clip: Write, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 200, rate=RATE)
    assert isinstance(read_blocks(path, READING, Segmentation.whole()), VideoFrames)
    assert isinstance(read_blocks(path, READING.until(6), WINDOWS), VideoFrames)
    cut = read_blocks(path, READING.until(10), WINDOWS)
    assert isinstance(cut, LongVideo)
    assert cut.duration_s == 11
    assert [tick for block in cut.blocks() for tick in block.ticks.tolist()] == list(range(11))


def test_what_is_no_video_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for path in (tmp_path, tmp_path / "gone.mp4", tmp_path / "empty.mp4", tmp_path / "text.mp4"):
        with pytest.raises(VideoError) as expected:
            read_frames(path, READING)
        with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
            read_blocks(path, READING, WINDOWS)


def test_a_slide_show_gives_each_slide_once(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    times = [0, 400, 20_000, 20_300, 41_700, 60_000]
    for name in ("slides.mp4", "slides.mkv"):
        found = read(write_clip(tmp_path / name, 6, times=times))
        # 0.4 s and 20.3 s are nearest to ticks that have nearer frames.
        assert found.ticks == [0, 20, 42, 60]
        assert found.numbers == [0, 2, 4, 5]
        assert found.times_s == pytest.approx([0, 20, 41.7, 60])
        assert found.video.gaps == ()


def test_a_variable_rate_goes_by_times(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    # Thirty seconds at 20 frames a second, then thirty at 4.
    times = [*range(0, 30_000, 50), *range(30_000, 60_000, 250)]
    found = read(write_clip(tmp_path / "clip.mp4", len(times), times=times))
    assert found.ticks == list(range(60))
    assert found.numbers == [times.index(1000 * tick) for tick in range(60)]


def test_sound_that_is_longer_adds_nothing(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = tmp_path / "clip.mkv"
    short = write_clip(tmp_path / "short.mp4", 200, rate=RATE)
    with av.open(str(short)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=44100)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
        add_silence(target, audio, 40)
    found = read(path)
    assert found.video.duration_s == pytest.approx(20, abs=0.01)
    assert found.ticks == list(range(20))


def add_silence(target: Any, audio: Any, duration_s: int) -> None:
    for start in range(0, duration_s * 44100, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts = 44100, start
        target.mux(audio.encode(frame))
    target.mux(audio.encode())


def test_a_late_picture_keeps_its_time(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    """Time 0 is the start of the sound; the picture comes five seconds later."""
    path = tmp_path / "late.mkv"
    with av.open(str(write_clip(tmp_path / "early.mp4", 300, rate=RATE))) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        with av.open(str(path), "w") as target:
            audio = target.add_stream("aac", rate=44100)
            stream = target.add_stream_from_template(source.streams.video[0])
            add_silence(target, audio, 40)
            for packet in packets:
                packet.pts += round(5 / packet.time_base)
                packet.dts += round(5 / packet.time_base)
                packet.stream = stream
                target.mux(packet)
    found = read(path)
    assert found.ticks == list(range(5, 35))
    assert found.numbers == [RATE * (tick - 5) for tick in found.ticks]
    assert found.times_s == pytest.approx(found.ticks, abs=0.03)


def join(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("first_s", [[0, 0, 0], [0, 3600, 60], [7200, 0, 0]])
def test_joined_transport_streams_play_on(
    first_s: list[int], write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    """Timestamps start again, jump ahead and go back, as ``cat *.ts`` makes them."""
    parts = [
        write_clip(
            tmp_path / f"{n}.ts",
            200,
            rate=RATE,
            first_number=200 * n,
            first_time=RATE * start_s,
            options=KEYS,
        )
        for n, start_s in enumerate(first_s)
    ]
    found = read(join(tmp_path / "joined.ts", *parts))
    assert found.video.duration_s == pytest.approx(60, abs=0.5)
    assert found.ticks == list(range(60))
    assert found.numbers == sorted(found.numbers)
    error = np.array(found.numbers) / RATE - found.times_s
    assert np.abs(error).max() < 0.45  # what the encoder's delay adds at each joint
    assert any(line.startswith("timestamps jump by ") for line in found.video.warnings)
    assert found.video.gaps == ()


def test_timestamps_that_wrap_play_on(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    """The 33 bits of a transport stream wrap after 26.5 hours."""
    wrap_s = 2**33 / 90_000
    found = read(
        write_clip(tmp_path / "wrap.ts", 400, rate=RATE, first_time=int((wrap_s - 20) * RATE))
    )
    assert found.numbers == [RATE * tick for tick in found.ticks] == list(range(0, 400, RATE))
    assert found.times_s == pytest.approx(found.ticks, abs=0.01)


def test_timestamps_that_step_back_in_other_formats_play_on(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    joined = tmp_path / "joined.flv"
    flv = write_clip(tmp_path / "part.flv", 200, rate=RATE, options={**KEYS, "bf": "0"})
    second = write_clip(
        tmp_path / "part2.flv", 200, rate=RATE, first_number=200, options={**KEYS, "bf": "0"}
    )
    joined.write_bytes(flv.read_bytes() + second.read_bytes()[13:])
    found = read(joined)
    assert found.numbers == sorted(found.numbers)
    assert max(found.numbers) > 380
    assert any(line.startswith("timestamps jump by ") for line in found.video.warnings)


def test_odd_rates_of_frames(write_clip: Write, read: Callable[..., Read], tmp_path: Path) -> None:
    found = read(write_clip(tmp_path / "ntsc.mp4", 900, rate=Fraction(30_000, 1001)))
    assert found.ticks == list(range(31))
    nominal = np.round(np.array(found.ticks) * 30_000 / 1001)
    assert found.numbers == nominal.tolist()


def test_decord_leaves_long_videos_to_pyav(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 300, rate=RATE)
    found = read(path, VideoReading(READING.sampling, 96, "decord"))
    assert found.numbers == list(range(0, 300, RATE))
    assert found.video.warnings == (
        "was read by PyAV in place of decord, which does not read long videos in windows",
    )
