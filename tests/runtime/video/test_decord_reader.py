from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from xclip_deploy.errors import MissingExtraError, VideoReadError
from xclip_deploy.runtime.video import FrameSampling, VideoReading, read_video, read_videos
from xclip_deploy.runtime.video.decord_reader import import_decord, read_with_decord

SAMPLING = FrameSampling(max_frames=12)


@pytest.fixture
def decord() -> Any:
    try:
        return import_decord()
    except MissingExtraError:
        pytest.skip("decord is not installed (it has no wheels for arm64 or macOS)")


@pytest.fixture
def no_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)


@pytest.mark.usefixtures("no_decord")
def test_missing_package(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'xclip-deploy\[decord\]'"):
        read_video(tmp_path / "clip.mp4", SAMPLING, 64, reader="decord")
    with pytest.raises(MissingExtraError):
        read_videos([], VideoReading(SAMPLING, 64, "decord"))


@pytest.mark.usefixtures("no_decord")
@pytest.mark.parametrize(
    ("codec", "suffix", "reason"),
    [("libx264", ".ts", "transport stream"), ("wmv2", ".wmv", "Windows Media")],
)
def test_hazards_are_refused_before_decord_sees_them(
    codec: str, suffix: str, reason: str, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", 20, codec=codec)
    with pytest.raises(VideoReadError, match=f"{reason}.*use reader='pyav'"):
        read_with_decord(path, VideoReading(SAMPLING, 64))
    disguised = path.rename(tmp_path / "clip.mp4")
    with pytest.raises(VideoReadError, match=reason):
        read_with_decord(disguised, VideoReading(SAMPLING, 64))


@pytest.mark.usefixtures("decord")
@pytest.mark.parametrize("name", ["sam2_dog.mp4", "intel_asl_walk.mkv", "mdn_frog.webm"])
def test_agrees_with_pyav(name: str, clips: Path) -> None:
    theirs = read_video(clips / name, SAMPLING, 64, reader="decord")
    ours = read_video(clips / name, SAMPLING, 64)
    assert theirs.frame_numbers.tolist() == ours.frame_numbers.tolist()
    assert np.allclose(theirs.times_s, ours.times_s, atol=0.005)
    assert theirs.duration_s == pytest.approx(ours.duration_s, abs=0.1)
    assert theirs.frame_rate == pytest.approx(ours.frame_rate)
    difference = np.abs(theirs.frames.astype(int) - ours.frames).mean(axis=(1, 2, 3))
    assert difference.max() <= 1.5


@pytest.mark.usefixtures("decord")
def test_exactly_the_right_frames(
    tmp_path: Path, side: int, write_clip: Callable[..., Path], read_numbers: Callable[..., Any]
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 75, options={"bf": "3", "g": "12"})
    video = read_video(path, SAMPLING, side, reader="decord")
    assert read_numbers(video.frames) == [0, 10, 20, 30, 40, 50, 60, 70]


@pytest.mark.usefixtures("decord")
def test_bad_files(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("These are notes.\n" * 100)
    with pytest.raises(VideoReadError, match="in no container that is known by its start"):
        read_video(path, SAMPLING, 64, reader="decord")
    path.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(1000))
    with pytest.raises(VideoReadError, match="in no video format that FFmpeg knows, or damaged"):
        read_video(path, SAMPLING, 64, reader="decord")
    tiny = write_clip(tmp_path / "tiny.mp4", 5, size=16)
    with pytest.raises(VideoReadError, match="decord cannot read it") as caught:
        read_video(tiny, SAMPLING, 64, reader="decord")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("decord")
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
def test_a_damaged_first_frame(codec: str, tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_clip(tmp_path / "clip.mov", 20, codec=codec, pixel_format=pixel_format)
    with av.open(str(path)) as container:
        first = next(packet for packet in container.demux(video=0) if packet.size)
        assert first.pos is not None
        start, size = first.pos, first.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(VideoReadError, match="decord cannot read it") as caught:
        read_video(path, SAMPLING, 64, reader="decord")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("decord")
def test_pixels_are_limited(
    tmp_path: Path, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    monkeypatch.setenv("XCLIP_DEPLOY_MAX_PIXELS", str(96 * 96 - 1))
    with pytest.raises(VideoReadError, match="too many pixels: 96x96; expected at most 9,215"):
        read_video(path, SAMPLING, 64, reader="decord")


@pytest.mark.usefixtures("decord")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("burst.mp4", "variable frame rates"),
        ("dog_pq.mp4", "HDR or wide gamuts"),
        ("tail_trimmed_by_edit_list.mp4", "edit lists"),
    ],
)
def test_what_decord_misreads_is_told(name: str, said: str, clips: Path) -> None:
    path = clips / "conditions" / name
    (warning,) = read_video(path, SAMPLING, 64, reader="decord").warnings
    assert warning == f"decord does not know {said}; use reader='pyav'"


@pytest.mark.usefixtures("decord")
def test_what_decord_reads_rightly_is_not_warned_of(clips: Path) -> None:
    for name in ("conditions/dog_square.mp4", "edge_cases/decord_video_90.mov", "mdn_frog.webm"):
        assert read_video(clips / name, SAMPLING, 64, reader="decord").warnings == ()
