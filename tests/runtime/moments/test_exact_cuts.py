"""Exact cuts hold the frames and the sound of the seconds asked for, and no others."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_movies import decode, number_in, tone, write_movie

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.moments import cut, frame_at, frames_between
from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video import FrameSampling, read_video

SOUNDS = {".mp4": 0.03, ".mov": 0.03, ".mkv": 0.03, ".webm": 0.03}


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds, ten frames a second, a key frame every two. Not to be changed."""
    return write_movie(tmp_path_factory.mktemp("movie") / "movie.mp4")


@pytest.mark.parametrize("ending", SOUNDS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (3.5, 5.2), (10.0, 12.0)])
def test_the_seconds_asked_for(
    movie: Path, tmp_path: Path, ending: str, start: float, end: float
) -> None:
    done = cut(movie, start, end, tmp_path / f"m{ending}")
    assert (done.start_s, done.end_s, done.has_sound, done.mode) == (start, end, True, "exact")
    assert done.warnings == ()
    found = decode(done.path)
    assert found.numbers == list(range(round(start * 10), round(end * 10)))
    assert found.times_s == pytest.approx(
        [number / 10 - start for number in found.numbers], abs=1.1e-3
    )
    assert found.sound_start_s == pytest.approx(0, abs=0.008)
    assert found.sound_end_s == pytest.approx(end - start, abs=0.045)
    # The pitch changes where the second does.
    for second in range(int(start), int(end) + 1):
        for time in (second + 0.1, second + 0.9):
            if start + 0.05 < time < end - 0.05:
                assert found.pitch(time - start) == pytest.approx(tone(second), abs=8)


@pytest.mark.parametrize("ending", SOUNDS)
def test_sound_is_right_to_one_frame_of_it(movie: Path, tmp_path: Path, ending: str) -> None:
    found = decode(cut(movie, 3.5, 5.5, tmp_path / f"m{ending}").path)
    # The change of pitch at 4 s: correlate with what should be heard there.
    rate = found.rate
    time = np.arange(round(-0.3 * rate), round(0.3 * rate)) / rate
    pitch = np.where(time < 0, tone(3), tone(4))
    signal = np.sin(2 * np.pi * pitch * (4 + time))
    start = round((0.5 - 0.3 - found.sound_start_s) * rate)
    shifts = range(-round(0.04 * rate), round(0.04 * rate), 4)
    scores = [
        np.abs(np.dot(signal, found.samples[start + shift : start + shift + len(signal)]))
        for shift in shifts
    ]
    assert abs(shifts[int(np.argmax(scores))]) / rate < 0.012


def length_s(path: Path) -> float:
    return read_video(path, FrameSampling(max_frames=4), 32).duration_s


def test_a_frame_that_the_start_finds_on_display(tmp_path: Path) -> None:
    times = [0, 100, 200, 3000, 3100, 3150, 7000, 7040, 9000]
    path = write_movie(tmp_path / "v.mkv", times_ms=times, sounds=())
    done = cut(path, 2.0, 8.0, tmp_path / "m.mp4")
    found = decode(done.path)
    assert found.numbers == [2, 3, 4, 5, 6, 7]
    assert found.times_s == pytest.approx([0, 1.0, 1.1, 1.15, 5.0, 5.04], abs=1e-3)
    assert length_s(done.path) == pytest.approx(6.0, abs=0.01)
    still = cut(path, 4.0, 6.0, tmp_path / "s.mp4")
    assert decode(still.path).numbers == [5]
    assert length_s(still.path) == pytest.approx(2.0, abs=0.01)
    assert not still.has_sound


@pytest.mark.parametrize(
    ("span", "cut_span", "silent", "heard"),
    [
        ((0, 6), (5, 8), [], [5]),  # shorter
        ((0, 14), (10, 12), [], [10, 11]),  # longer
        ((6, 12), (5, 8), [5], [6, 7]),  # later
        ((0, 3), (5, 8), [], []),  # none of it left
    ],
)
def test_sound_of_other_lengths(
    tmp_path: Path,
    span: tuple[int, int],
    cut_span: tuple[int, int],
    silent: list[int],
    heard: list[int],
) -> None:
    path = write_movie(tmp_path / "v.mp4", sounds=[span])
    done = cut(path, *cut_span, tmp_path / "m.mp4")
    found = decode(done.path)
    assert found.numbers == list(range(10 * cut_span[0], 10 * cut_span[1]))
    assert done.has_sound is bool(heard)
    for second in (*silent, *heard):
        wanted = tone(second) if second in heard else 0
        assert found.pitch(second + 0.5 - cut_span[0]) == pytest.approx(wanted, abs=8)
    if not heard:
        assert done.warnings == ("the video has no sound in these seconds",)


def test_sound_before_the_first_frame(tmp_path: Path) -> None:
    times = [2000 + 100 * number for number in range(50)]
    path = write_movie(tmp_path / "v.mkv", times_ms=times, sounds=[(0, 7)])
    found = decode(cut(path, 1.0, 3.0, tmp_path / "m.mp4").path)
    assert found.numbers == list(range(10))
    assert found.times_s[0] == pytest.approx(1.0, abs=0.002)
    assert [round(found.pitch(t)) for t in (0.5, 1.5)] == pytest.approx([tone(1), tone(2)], abs=8)
    before = decode(cut(path, 0.5, 1.5, tmp_path / "b.mp4").path)
    assert before.numbers == [0]  # nothing else is there to show


def test_the_first_of_several_sounds(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "v.mkv", sounds=[(0, 12), (0, 12)])
    done = cut(path, 3, 4, tmp_path / "m.mp4")
    assert done.warnings == ("the first of 2 sounds is kept",)
    assert decode(done.path).pitch(0.5) == pytest.approx(tone(3), abs=8)


@pytest.mark.parametrize(
    ("layout", "rate", "kept"), [("mono", 22_050, 1), ("5.1", 48_000, 6), ("4.0", 48_000, 2)]
)
def test_channels(tmp_path: Path, layout: str, rate: int, kept: int) -> None:
    path = write_movie(tmp_path / "v.mkv", layout=layout, sound_rate=rate)
    found = decode(cut(path, 3, 5, tmp_path / "m.mp4").path)
    assert (found.channels, found.rate) == (kept, rate)
    assert found.pitch(1.5) == pytest.approx(tone(4), abs=8)


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("v.ts", ("libx264", "aac")),
        ("v.avi", ("mpeg4", "mp3")),
        ("v.mpg", ("mpeg2video", "mp2")),
        ("v.webm", ("libvpx", "libopus")),
        ("v.mkv", ("libx265", "flac")),
        ("v.flv", ("libx264", "aac")),
        ("v.mov", ("mpeg4", "pcm_s16le")),
    ],
)
def test_containers_that_the_reader_opens(
    tmp_path: Path, name: str, codecs: tuple[str, str]
) -> None:
    rate = 25  # MPEG-2 knows a few rates
    sound_rate = 48_000 if codecs[1] == "libopus" else 44_100
    fast = {"deadline": "realtime", "cpu-used": "8"}  # else 300 frames take libvpx 3 s
    options = {"libx265": {"x265-params": "log-level=none"}, "libvpx": fast}.get(codecs[0], {})
    try:
        path = write_movie(
            tmp_path / name, rate=rate, codecs=codecs, options=options, sound_rate=sound_rate
        )
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no encoder for {codecs}")
    done = cut(path, 3.0, 5.0, tmp_path / "m.mp4")
    found = decode(done.path)
    expected = list(range(75, 125))
    # AVI and MPEG streams begin later than 0 by a frame or a fraction of one.
    assert abs(found.numbers[0] - 75) <= 1
    assert found.numbers == list(range(found.numbers[0], found.numbers[-1] + 1))
    assert abs(len(found.numbers) - len(expected)) <= 1
    assert found.pitch(0.5) == pytest.approx(tone(3), abs=8)
    assert found.pitch(1.5) == pytest.approx(tone(4), abs=8)


def test_a_stream_without_a_container(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "v.h264", rate=25, seconds=6, sounds=())
    found = decode(cut(path, 2.0, 3.0, tmp_path / "m.mp4").path)
    assert found.numbers == list(range(50, 75))


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into the track header of an MP4 file (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((-1, 0, 0, 1), np.fliplr),
    ],
)
def test_turned_videos_stay_as_players_show_them(
    tmp_path: Path, matrix: tuple[int, int, int, int], turn: Any
) -> None:
    stored = write_movie(tmp_path / "v.mp4", size=(128, 96), sounds=(), pixel_aspect=Fraction(3, 2))
    plain = frame_at(stored, 3.35)
    turned = with_matrix(stored, matrix)
    assert np.abs(frame_at(turned, 3.35).astype(int) - turn(plain)).mean() < 3
    for mode, ending in (("exact", ".mp4"), ("exact", ".webm"), ("copy", ".mp4"), ("copy", ".mov")):
        done = cut(turned, 2.0, 4.0, tmp_path / f"m{ending}", mode=mode, overwrite=True)  # type: ignore[arg-type]
        again = frame_at(done.path, 3.35 - done.start_s)
        assert again.shape == turn(plain).shape
        assert np.abs(again.astype(int) - turn(plain)).mean() < 6, (mode, ending)


def test_pixel_aspect_is_kept(tmp_path: Path) -> None:
    aspect = Fraction(16, 11)
    path = write_movie(tmp_path / "v.mp4", pixel_aspect=aspect, sounds=())
    for mode, ending in (("exact", ".mp4"), ("exact", ".mkv"), ("copy", ".mp4"), ("copy", ".mkv")):
        done = cut(path, 2, 4, tmp_path / f"m{ending}", mode=mode, overwrite=True)  # type: ignore[arg-type]
        assert float(decode(done.path).pixel_aspect) == pytest.approx(float(aspect), rel=0.01)
    assert frame_at(path, 1).shape == (96, 140, 3)


def test_odd_sides_get_a_line_more(tmp_path: Path) -> None:
    path = write_movie(
        tmp_path / "v.mkv", size=(97, 75), codecs=("ffv1", "flac"), pixel_format="bgr0", sounds=()
    )
    found = decode(cut(path, 2, 3, tmp_path / "m.mp4").path)
    assert found.size == (98, 76)
    assert found.numbers == list(range(20, 30))


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
@pytest.mark.parametrize("kind", ["limited", "full", "601", "rgb", "gray"])
def test_colours_stay(tmp_path: Path, kind: str, ending: str) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (
        (200, 40, 40),
        (30, 180, 60),
        (60, 60, 220),
    )
    picture[32:] = picture[32:] // 3 + 20
    path = tmp_path / "v.mkv"
    pixel_format = {"rgb": "bgr0", "gray": "gray", "full": "yuv444p"}.get(kind, "yuv444p")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
        matrix = {"limited": 1, "601": 5}.get(kind)
        if matrix:
            stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if kind == "full" else 1
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            colours = {
                "dst_colorspace": "ITU709" if matrix == 1 else "ITU601",
                "dst_color_range": "JPEG" if kind == "full" else "MPEG",
            }
            frame = frame.reformat(
                format=pixel_format,
                **({} if kind in ("rgb", "gray") else colours),  # type: ignore[arg-type]
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    before = frame_at(path, 1.0)
    after = frame_at(cut(path, 0.5, 1.5, tmp_path / f"m{ending}").path, 0.5)
    # Away from the edges, where 4:2:0 mixes neighbours.
    for column in (8, 40, 72):
        for row in (8, 40):
            a, b = (p[row : row + 16, column : column + 16].mean((0, 1)) for p in (before, after))
            assert a == pytest.approx(b, abs=4), (kind, row, column)


@pytest.mark.slow  # test_a_real_clip_in_pq reads this clip every day; test_colours_stay cuts
def test_hdr_looks_as_the_reader_shows_it(clips: Path, tmp_path: Path) -> None:
    if int(av.__version__.partition(".")[0]) < 18:
        pytest.skip("PyAV 17 converts no HDR; it warns")
    path = clips / "conditions/dog_pq.mp4"
    done = cut(path, 0.5, 1.0, tmp_path / "m.mp4")
    assert done.warnings == ()
    with av.open(str(done.path)) as container:
        codec: Any = container.streams.video[0].codec_context
        assert (codec.color_trc, codec.color_primaries, codec.colorspace) == (1, 1, 1)
        assert codec.pix_fmt == "yuv420p"
    shown, again = frame_at(path, 0.7), frame_at(done.path, 0.2)
    assert np.abs(shown.astype(int) - again).mean() < 4
    kept = cut(path, 0.5, 1.0, tmp_path / "c.mp4", mode="copy")
    with av.open(str(kept.path)) as container:
        assert container.streams.video[0].codec_context.color_trc == 16


def test_padding_ends_where_the_video_does(movie: Path, tmp_path: Path) -> None:
    done = cut(movie, 1.0, 2.0, tmp_path / "a.mp4", pad_s=1.5)
    assert (done.start_s, done.end_s) == (0.0, 3.5)
    assert decode(done.path).numbers == list(range(35))
    done = cut(movie, 11.0, 12.0, tmp_path / "b.mp4", pad_s=0.5)
    assert (done.start_s, done.end_s) == (10.5, 12.0)


@pytest.mark.parametrize(
    ("start", "end"), [(3, 3), (5, 2), (-1, 2), (12, 13), (40, 50), (5, 12.5), (float("nan"), 2)]
)
@pytest.mark.parametrize("mode", ["exact", "copy"])
def test_ranges_that_are_none(
    movie: Path, tmp_path: Path, start: float, end: float, mode: Any
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        cut(movie, start, end, tmp_path / "m.mp4", mode=mode)
    assert "\n" not in str(raised.value)
    if start == start:
        assert f"{time_text(12, 1)} long" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_moment(movie: Path) -> None:
    assert [number_in(frame_at(movie, time)) for time in (0, 3.35, 11.99, 12)] == [0, 33, 119, 119]
    frames, times = frames_between(movie, 3.35, 5.0)
    assert [number_in(frame) for frame in frames] == list(range(33, 50))
    assert times == pytest.approx([number / 10 for number in range(33, 50)])
    frames, times = frames_between(movie, 0, 12, max_frames=5, max_side=48)
    assert frames.shape == (5, 48, 48, 3)
    assert [number_in(frame) for frame in frames] == [0, 30, 60, 89, 119]
    for time in (-0.5, 12.2, float("inf")):
        with pytest.raises(InvalidArgumentError):
            frame_at(movie, time)
    with pytest.raises(InvalidArgumentError):
        frames_between(movie, 3, 3)
