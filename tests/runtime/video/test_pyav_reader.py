from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video import FrameSampling, VideoFrames, read_video, sample_frame_numbers
from xclip_deploy.runtime.video import pyav_reader as reader_module
from xclip_deploy.runtime.video import taken_frames as taken_frames_module
from xclip_deploy.runtime.video.packet_index import index_packets
from xclip_deploy.runtime.video.preprocessing import resize_and_crop
from xclip_deploy.runtime.video.pyav_container import open_video

SAMPLING = FrameSampling(max_frames=12)
GOLDEN = json.loads(
    (Path(__file__).resolve().parents[2] / "golden" / "frame_sampling.json").read_text()
)
WITH_B_FRAMES = {"bf": "3", "g": "12"}
QUIET_X265 = {"x265-params": "log-level=none:bframes=3:keyint=12"}


@pytest.fixture
def shortcut_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any) -> VideoFrames:
        raise AssertionError(f"{path} was decoded without shortcuts")

    monkeypatch.setattr(reader_module, "_read_without_shortcuts", refuse)


@pytest.fixture
def without_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the index look unusable, so that every frame is decoded from the start."""
    monkeypatch.setattr(reader_module, "_targets", lambda *_: ([], "frame numbers"))


# Real clips


@pytest.mark.parametrize("name", GOLDEN)
def test_authors_frame_numbers_of_real_clips(name: str, shared_clip: Callable[..., Path]) -> None:
    container, stream = open_video(shared_clip(name))
    with container:
        index = index_packets(container, stream)
    assert index.is_reliable
    # OpenCV estimated this one from the duration; one frame more than are stored.
    estimated = 1 if name == "intel_asl_book.mkv" else 0
    assert len(index.timestamps) == GOLDEN[name]["frame_count"] - estimated
    for limit, expected in GOLDEN[name]["selected"].items():
        sampling = FrameSampling(max_frames=int(limit))
        assert index.frame_rate is not None
        numbers = sample_frame_numbers(len(index.timestamps), index.frame_rate, sampling)
        assert numbers.tolist() == expected


@pytest.mark.usefixtures("shortcut_only")
@pytest.mark.parametrize("name", GOLDEN)
def test_real_clips_need_no_second_try(name: str, shared_clip: Callable[..., Path]) -> None:
    video = read_video(shared_clip(name), FrameSampling(max_frames=8), 32)
    assert video.frame_numbers.tolist() == GOLDEN[name]["selected"]["8"]
    assert video.warnings == ()
    assert video.frames.shape == (len(video.frame_numbers), 32, 32, 3)
    # Timestamps of WebM are rounded to milliseconds.
    expected_s = video.frame_numbers / video.frame_rate
    assert np.allclose(video.times_s, expected_s, atol=0.005)
    assert video.times_s[-1] < video.duration_s


@pytest.mark.parametrize("name", ["mdn_frog.webm", "sam2_dog.mp4"])
def test_pixels_of_the_authors(name: str, clips: Path, golden: Path) -> None:
    video = read_video(clips / name, FrameSampling(max_frames=64), 224)
    with np.load(golden / f"frames_{Path(name).stem}.npz") as expected:
        taken = np.isin(video.frame_numbers, expected["positions"])
        difference = np.abs(video.frames[taken].astype(int) - expected["frames"])
    assert difference.mean(axis=(1, 2, 3)).max() <= 1.5


@pytest.mark.parametrize(
    "name", ["sam2_dog.mp4", "intel_asl_walk.mkv", "edge_cases/torchcodec_h265.mp4"]
)
def test_shortcuts_change_no_bit(name: str, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = FrameSampling(frames_per_second=3, max_frames=12)
    quick = read_video(clips / name, sampling, 96)
    monkeypatch.setattr(reader_module, "_targets", lambda *_: ([], "frame numbers"))
    thorough = read_video(clips / name, sampling, 96)
    assert np.array_equal(quick.frames, thorough.frames)
    assert np.array_equal(quick.frame_numbers, thorough.frame_numbers)
    assert np.array_equal(quick.times_s, thorough.times_s)
    assert quick.duration_s == thorough.duration_s


def test_corrupt_packet_is_survived_and_told(clips: Path) -> None:
    video = read_video(clips / "edge_cases/decord_corrupted.mp4", SAMPLING, 64)
    assert len(video.frames) == 5
    assert any("could not be decoded" in warning for warning in video.warnings)


def test_rotated_video_is_upright(clips: Path) -> None:
    path = clips / "edge_cases/decord_video_90.mov"
    video = read_video(path, SAMPLING, 320)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        pixels = stored.to_ndarray(format="rgb24")  # [320, 568, 3], lying on its left side
    assert stored.rotation == -90
    # A quarter turn clockwise: the first row of the upright picture is the first column of
    # the stored one, read from the bottom. Upright it is 568 high, of which 124 are cut off.
    clockwise = np.stack([pixels[::-1, column] for column in range(568)])  # [568, 320, 3]
    assert np.abs(video.frames[0].astype(int) - clockwise[124:444]).mean() < 1.5


@pytest.mark.parametrize(
    ("name", "numbers", "duration_s"),
    [
        ("torchcodec_av1.mkv", [0, 25, 50, 75, 100], 5.0),
        ("torchcodec_h265.mp4", [0], 1.0),
        ("moviepy_no_duration.webm", [0, 14, 28, 42, 56, 70], 4.938),
        ("torchcodec_test_non_zero_start.mp4", [0], 0.4),
    ],
)
def test_other_edge_cases(name: str, numbers: list[int], duration_s: float, clips: Path) -> None:
    video = read_video(clips / "edge_cases" / name, SAMPLING, 64)
    assert video.frame_numbers.tolist() == numbers
    assert video.duration_s == pytest.approx(duration_s, abs=0.01)
    assert video.times_s[0] == 0
    assert video.warnings == ()
    assert video.frames.std() > 2


# Exactly the right frames


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", WITH_B_FRAMES),
        (".mp4", "libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=2"}),
        (".mp4", "libx265", QUIET_X265),
        (".mov", "libx265", {"x265-params": "log-level=none:temporal-layers=3:keyint=12"}),
        (".mkv", "libx264", WITH_B_FRAMES),
        (".mkv", "libsvtav1", {"preset": "8", "crf": "10", "g": "12"}),
        (".webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"}),
        (".webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
        (".ts", "libx264", WITH_B_FRAMES),
        (".ts", "libx265", QUIET_X265),
        (".flv", "libx264", WITH_B_FRAMES),
        (".avi", "libx264", WITH_B_FRAMES),
        (".avi", "mpeg4", {"bf": "2"}),
        (".h264", "libx264", WITH_B_FRAMES),
        (".wmv", "wmv2", {"b": "2M"}),
        (".y4m", "rawvideo", {}),
    ],
)
def test_exactly_the_right_frames(
    suffix: str,
    codec: str,
    options: dict[str, str],
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", 75, codec=codec, options=options)
    sampling = FrameSampling(frames_per_second=3, max_frames=12)
    video = read_video(path, sampling, side)
    expected = sample_frame_numbers(75, video.frame_rate, sampling).tolist()
    assert video.frame_numbers.tolist() == expected
    assert read_numbers(video.frames) == expected
    # With reordering in AVI, the first frame is shown one frame late.
    tolerance_s = 0.101 if suffix == ".avi" else 0.01
    assert np.allclose(video.times_s, np.array(expected) / video.frame_rate, atol=tolerance_s)
    assert video.warnings == ()


@pytest.mark.usefixtures("without_shortcuts")
def test_right_frames_without_shortcuts(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 75, options=WITH_B_FRAMES)
    resized: list[Any] = []

    def counted(frame: Any, *arguments: Any) -> Any:
        resized.append(frame)
        return resize_and_crop(frame, *arguments)

    monkeypatch.setattr(taken_frames_module, "resize_and_crop", counted)
    video = read_video(path, FrameSampling(max_frames=3), side)
    assert read_numbers(video.frames) == [0, 30, 70] == video.frame_numbers.tolist()
    assert len(resized) == 3  # memory: nothing is kept but what is returned


def test_cut_without_encoding_anew(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    """An edit list that starts between keyframes: earlier packets are decoded, not shown."""
    source = write_clip(tmp_path / "source.mp4", 75, options=WITH_B_FRAMES)
    path = tmp_path / "cut.mp4"
    with (
        av.open(str(source)) as before,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as after,
    ):
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        packets = [packet for packet in before.demux(stream) if packet.size]
        cut = sorted(packet.pts for packet in packets)[17]
        key = max(packet.dts for packet in packets if packet.is_keyframe and packet.pts <= cut)
        for packet in [packet for packet in packets if packet.dts >= key]:
            packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copy
            after.mux(packet)
    with av.open(str(path)) as check:
        assert any(packet.is_discard for packet in check.demux(video=0))
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == [17, 27, 37, 47, 57, 67]
    assert video.frame_numbers.tolist() == [0, 10, 20, 30, 40, 50]
    assert video.times_s.tolist() == pytest.approx([0, 1, 2, 3, 4, 5])


def test_variable_frame_rate(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    gaps = np.random.default_rng(0).integers(40, 160, 60)
    times = np.concatenate([[0], np.cumsum(gaps)[:-1]]).tolist()
    path = write_clip(tmp_path / "clip.mp4", 60, times=times, options=WITH_B_FRAMES)
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == video.frame_numbers.tolist()
    true_s = np.array(times)[video.frame_numbers] / 1000
    assert np.allclose(video.times_s, true_s, atol=0.001)
    assert len(video.frames) == pytest.approx(times[-1] / 1000, abs=2)


def test_less_than_one_frame_per_second(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 6, rate=Fraction(1, 4))
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == [0, 1, 2, 3, 4, 5]
    assert video.times_s.tolist() == [0, 4, 8, 12, 16, 20]
    assert video.duration_s == pytest.approx(24)


def test_one_frame(
    tmp_path: Path, side: int, write_clip: Callable[..., Path], read_numbers: Callable[..., Any]
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 1, first_number=345)
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == [345]
    assert video.times_s.tolist() == [0]
    assert video.duration_s == pytest.approx(0.1)


def test_implausible_frame_rate_in_the_header(
    tmp_path: Path, side: int, write_clip: Callable[..., Path], read_numbers: Callable[..., Any]
) -> None:
    times = list(range(0, 4000, 100))
    path = write_clip(tmp_path / "clip.mkv", 40, rate=1000, times=times)
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == [0, 10, 20, 30]
    assert video.frame_rate == pytest.approx(10)
    assert "announces 1000.000 frames per second" in video.warnings[0]


def test_resolution_that_changes(
    tmp_path: Path, side: int, write_clip: Callable[..., Path], read_numbers: Callable[..., Any]
) -> None:
    first = write_clip(tmp_path / "first.ts", 20, options={"bf": "0"})
    second = write_clip(
        tmp_path / "second.ts", 20, options={"bf": "0"}, first_number=20, first_time=20, size=192
    )
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == [0, 10, 20, 30]
    assert "the resolution changes (96x96, 192x192)" in video.warnings


def test_start_before_the_first_frame(
    tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    """Sound starts at 0, the picture half a second later."""
    path = write_clip(tmp_path / "clip.mkv", 20, first_time=5, with_audio=True)
    video = read_video(path, SAMPLING, side)
    assert video.times_s.tolist() == pytest.approx([0.5, 1.5], abs=0.05)
    assert video.duration_s == pytest.approx(2.5, abs=0.05)


# Bad files


def read_or_refuse(path: Path, side: int) -> VideoFrames | None:
    """No other exception may come out, and the message has to be one line about the file."""
    try:
        return read_video(path, SAMPLING, side)
    except VideoReadError as error:
        message = str(error)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return None


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize(
    "name",
    ["mp4", "faststart.mp4", "mkv", "ts", "avi", "webm"],
)
def test_truncated_files(
    name: str,
    part: float,
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[..., Any],
) -> None:
    codec = "libvpx" if name == "webm" else "libx264"
    options = {"b": "200k"} if name == "webm" else WITH_B_FRAMES
    front = {"movflags": "faststart"} if name.startswith("faststart") else {}
    path = write_clip(
        tmp_path / f"clip.{name}", 75, codec=codec, options=options, container_options=front
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    video = read_or_refuse(path, side)
    if video is None:
        return
    assert 1 <= len(video.frames) <= 8
    assert len(video.frames) == len(video.times_s) == len(video.frame_numbers)
    # All but the last frames of what survived are whole.
    whole = read_numbers(video.frames[:-1]) if len(video.frames) > 1 else []
    assert whole == video.frame_numbers[:-1].tolist()
    assert video.duration_s <= 7.6


def test_truncation_is_told(tmp_path: Path, side: int, write_clip: Callable[..., Path]) -> None:
    for name in ("clip.mp4", "clip.mkv"):
        path = write_clip(tmp_path / name, 75, container_options={"movflags": "faststart"})
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])
        warnings = read_video(path, SAMPLING, side).warnings
        assert any(warning.startswith("truncated") for warning in warnings), (name, warnings)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files(
    seed: int, tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    random = np.random.default_rng(seed)
    suffix = (".mp4", ".mkv", ".ts")[seed % 3]
    path = write_clip(tmp_path / f"clip{suffix}", 40, options=WITH_B_FRAMES)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[random.integers(0, len(data), 30)] = random.integers(0, 256, 30)
    path.write_bytes(data.tobytes())
    video = read_or_refuse(path, side)
    if video is not None:
        assert video.frames.shape == (len(video.times_s), side, side, 3)
        assert 1 <= len(video.frames) <= 12
