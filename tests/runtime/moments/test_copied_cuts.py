"""Copies hold what the streams held, begin at a key frame, and say where they begin and end."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_movies import decode, tone, write_movie

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.moments import cut, frame_at, frames_between
from xclip_deploy.runtime.video import FrameSampling, read_video


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds, ten frames a second, a key frame every two. Not to be changed."""
    return write_movie(tmp_path_factory.mktemp("movie") / "movie.mp4")


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("start", "end", "first"), [(0.0, 1.5, 0), (2.0, 4.0, 20), (5.7, 8.3, 40), (11.0, 12.0, 100)]
)
def test_from_the_key_frame_before(
    movie: Path, tmp_path: Path, ending: str, start: float, end: float, first: int
) -> None:
    done = cut(movie, start, end, tmp_path / f"m{ending}", mode="copy")
    assert (done.mode, done.has_sound, done.warnings) == ("copy", True, ())
    found = decode(done.path)
    # Every frame that was asked for is there, and what is reported is what is there.
    assert found.numbers == list(range(first, first + len(found.numbers)))
    assert found.numbers[-1] >= round(end * 10) - 1
    assert len(found.numbers) <= round(end * 10) - first + 3  # frames that B-frames refer to
    assert done.start_s == pytest.approx(first / 10)
    assert done.end_s == pytest.approx((found.numbers[-1] + 1) / 10)
    assert found.times_s == pytest.approx([n / 10 for n in range(len(found.numbers))], abs=1.1e-3)
    for second in range(first // 10, int(end)):
        time = second + 0.5 - done.start_s
        assert found.pitch(time) == pytest.approx(tone(second), abs=8)
    assert read_video(done.path, FrameSampling(max_frames=4), 32).warnings == ()


def test_no_bit_of_the_pictures_changes(movie: Path, tmp_path: Path) -> None:
    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    done = cut(movie, 4.0, 8.0, tmp_path / "m.mp4", mode="copy")
    copied, whole = packets(done.path), packets(movie)
    assert len(copied) >= 40
    start = whole.index(copied[0])
    assert whole[start : start + len(copied)] == copied


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("v.ts", ("libx264", "aac")),
        ("v.mkv", ("libx264", "flac")),
        ("v.webm", ("libvpx-vp9", "libopus")),
        ("v.mkv", ("libx265", "aac")),
        ("v.mpg", ("mpeg2video", "mp2")),
    ],
)
def test_from_other_containers(tmp_path: Path, name: str, codecs: tuple[str, str]) -> None:
    options = {"x265-params": "log-level=none"} if codecs[0] == "libx265" else {}
    options |= {"g": "50"}
    rate = 48_000 if codecs[1] == "libopus" else 44_100
    path = write_movie(tmp_path / name, rate=25, codecs=codecs, options=options, sound_rate=rate)
    for ending in (".mkv", ".mp4"):
        done = cut(path, 5.0, 7.0, tmp_path / f"m{ending}", mode="copy")
        found = decode(done.path)
        assert 0 < done.start_s <= 5.0
        assert done.end_s == pytest.approx(7.0, abs=0.2)
        assert found.numbers[0] == pytest.approx(25 * done.start_s, abs=1)
        assert found.numbers == list(range(found.numbers[0], found.numbers[-1] + 1))
        assert found.times_s[0] == pytest.approx(0, abs=0.05)
        assert found.pitch(6.5 - done.start_s) == pytest.approx(tone(6), abs=8)


def test_a_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 100, 200, 3000, 3100, 3150, 7000, 7040, 9000]
    options = {"g": "3", "bf": "0", "sc_threshold": "0"}
    path = write_movie(tmp_path / "v.mkv", times_ms=times, sounds=(), options=options)
    done = cut(path, 3.12, 7.02, tmp_path / "m.mp4", mode="copy")
    found = decode(done.path)
    assert (done.start_s, done.end_s) == pytest.approx((3.0, 7.04), abs=1e-3)
    assert found.numbers == [3, 4, 5, 6]
    assert found.times_s == pytest.approx([0, 0.1, 0.15, 4.0], abs=1e-3)


def test_no_sound(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "v.mp4", sounds=())
    assert not cut(path, 3, 5, tmp_path / "m.mp4", mode="copy").has_sound


def test_streams_that_the_container_does_not_take(tmp_path: Path) -> None:
    path = write_movie(
        tmp_path / "v.webm", codecs=("libvpx", "libopus"), sound_rate=48_000, seconds=4
    )
    with pytest.raises(InvalidArgumentError, match=r"vp8.*name it \.mkv, or use mode='exact'"):
        cut(path, 1, 2, tmp_path / "m.mp4", mode="copy")
    assert [each.name for each in tmp_path.iterdir()] == ["v.webm"]
    assert cut(path, 1, 2, tmp_path / "m.mkv", mode="copy").has_sound


def test_a_stream_without_timestamps(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "v.h264", rate=25, seconds=4, sounds=())
    with pytest.raises(InvalidArgumentError, match="use mode='exact'"):
        cut(path, 1, 2, tmp_path / "m.mp4", mode="copy")


def test_a_pixel_aspect_that_only_the_container_holds_is_told(tmp_path: Path) -> None:
    path = write_movie(
        tmp_path / "v.mkv",
        codecs=("ffv1", "flac"),
        sounds=(),
        edit=lambda stream: stream.metadata.update(stereo_mode="mono"),
    )
    content = path.read_bytes()
    old, new = b"\x53\xb8\x81\x00\x54\xb2\x81\x04", b"\x54\xb0\x81\x90\x54\xba\x81\x60"
    # StereoMode and DisplayUnit become DisplayWidth and DisplayHeight.
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    done = cut(path, 1, 2, tmp_path / "m.mkv", mode="copy")
    assert any("the copy lost that pixels are 3:2" in each for each in done.warnings)
    exact = cut(path, 1, 2, tmp_path / "e.mkv")
    assert exact.warnings == ()
    assert decode(exact.path).pixel_aspect == Fraction(3, 2)


@pytest.mark.parametrize(("start", "end"), [(0.4, 1.3), (0.0, 0.3)])
@pytest.mark.parametrize(
    "name", ["sam2_dog.mp4", "intel_asl_walk.mkv", "edge_cases/torchcodec_av1.mkv"]
)
def test_real_clips(clips: Path, tmp_path: Path, name: str, start: float, end: float) -> None:
    for mode, most in (("exact", 3.0), ("copy", 0.01)):
        done = cut(clips / name, start, end, tmp_path / f"{mode}.mkv", mode=mode)  # type: ignore[arg-type]
        assert done.start_s == start or mode == "copy"
        frames, times = frames_between(done.path, 0, done.end_s - done.start_s)
        assert len(times) >= 2
        for time, picture in zip(times[::5], frames[::5], strict=True):
            there = frame_at(clips / name, done.start_s + time + 0.002)
            assert np.abs(picture.astype(int) - there).mean() <= most
