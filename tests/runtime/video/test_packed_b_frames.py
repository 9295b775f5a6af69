"""AVI stores decoding order, and XviD and DivX pack two frames into one chunk."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from xclip_deploy.runtime.video import FrameSampling, pyav_reader, read_video
from xclip_deploy.runtime.video.pyav_container import open_video

SAMPLING = FrameSampling(frames_per_second=2, max_frames=20)
COUNT = 70
VOP = b"\x00\x00\x01\xb6"
# P, no modulo, marker, four bits of time, marker, not coded, stuffing (ISO/IEC 14496-2, 6.2.5).
NOT_CODED = VOP + b"\x50\x9f"


Frames = list[tuple[bytes, bool]]
"""Coded frames in decoding order, with whether each is a key."""


@pytest.fixture
def coded_frames(draw: Callable[[int], NDArray[np.uint8]]) -> Callable[[int], Frames]:
    """Encode numbered frames as MPEG-4 Part 2 with this many B-frames in a row."""
    return partial(encode, draw)


def encode(draw: Callable[[int], NDArray[np.uint8]], b_frames: int) -> Frames:
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width = encoder.height = draw(0).shape[0]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 10)
    encoder.framerate = Fraction(10)
    encoder.options = {"qscale": "2", "b_strategy": "0"}
    encoder.max_b_frames, encoder.gop_size, encoder.bit_rate = b_frames, 12, 2_000_000
    packets = []
    for number in range(COUNT):
        frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [(bytes(packet), packet.is_keyframe) for packet in packets]


def is_b_frame(content: bytes) -> bool:
    return content[content.index(VOP) + len(VOP)] >> 6 == 2


def pack(frames: Frames) -> Frames:
    """Put the first B-frame behind its reference, and fill up with frames that are not coded."""
    packed: Frames = []
    groups: list[Frames] = []
    for frame in frames:
        if is_b_frame(frame[0]):
            groups[-1].append(frame)
        else:
            groups.append([frame])
    for (first, is_key), *rest in groups:
        if rest:
            packed += [(first + rest[0][0], is_key), *rest[1:], (NOT_CODED, False)]
        else:
            packed.append((first, is_key))
    assert len(packed) == len(frames)
    # The user data by which decoders know it.
    marker = b"\x00\x00\x01\xb2DivX503b1393p"
    return [(re.sub(rb"\x00\x00\x01\xb2Lavc[^\x00]*", marker, c), k) for c, k in packed]


def write(path: Path, chunks: Frames, times: list[int] | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 96
        stream.codec_context.time_base = Fraction(1, 10)
        for position, (content, is_key) in enumerate(chunks):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = times[position] if times else position
            packet.duration, packet.is_keyframe = 1, is_key
            container.mux(packet)
    return path


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("b_frames", [0, 1, 2])
def test_decoder_order_is_right(
    is_packed: bool,
    b_frames: int,
    tmp_path: Path,
    coded_frames: Callable[[int], Frames],
    side: int,
    read_numbers: Callable[[Any], list[int]],
) -> None:
    frames = coded_frames(b_frames)
    assert any(is_b_frame(content) for content, _ in frames) == (b_frames > 0)
    path = write(tmp_path / "clip.avi", pack(frames) if is_packed else frames)
    video = read_video(path, SAMPLING, side)
    expected = list(range(0, COUNT, 5))
    assert video.frame_numbers.tolist() == expected
    assert read_numbers(video.frames) == expected
    assert video.times_s.tolist() == pytest.approx([number / 10 for number in expected])
    assert video.duration_s == pytest.approx(COUNT / 10)
    assert video.sampled_by == "frame numbers"
    assert video.warnings == ()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that the reader opened: one for the index, one for each time it decodes."""
    paths: list[Path] = []

    def open_and_note(path: Path) -> Any:
        paths.append(path)
        return open_video(path)

    monkeypatch.setattr(pyav_reader, "open_video", open_and_note)
    return paths


@pytest.mark.parametrize("is_packed", [True, False])
def test_an_intact_file_is_decoded_once(
    is_packed: bool,
    tmp_path: Path,
    coded_frames: Callable[[int], Frames],
    side: int,
    read_numbers: Callable[[Any], list[int]],
    opened: list[Path],
) -> None:
    frames = coded_frames(2)
    path = write(tmp_path / "clip.avi", pack(frames) if is_packed else frames)
    assert read_numbers(read_video(path, SAMPLING, side).frames) == list(range(0, COUNT, 5))
    assert opened == [path, path]


def test_a_bare_stream_is_decoded_once(
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
    opened: list[Path],
) -> None:
    path = write_clip(tmp_path / "clip.h264", COUNT, rate=25, options={"bf": "2"})
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == video.frame_numbers.tolist() != [0]
    assert opened == [path, path]


def test_a_wrong_guess_costs_time_alone(
    tmp_path: Path,
    coded_frames: Callable[[int], Frames],
    side: int,
    read_numbers: Callable[[Any], list[int]],
    opened: list[Path],
) -> None:
    """Chunks that hold no frame are counted, and only the decoder tells."""
    frames = coded_frames(2)
    frames[30:30] = [(NOT_CODED, False)] * 12
    path = write(tmp_path / "clip.avi", frames)
    video = read_video(path, FrameSampling(frames_per_second=1, max_frames=4), side)
    assert opened == [path, path, path]
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) < COUNT + 12
    right = np.stack([shown[number] for number in video.frame_numbers])
    assert read_numbers(video.frames) == read_numbers(right)
    assert video.frame_numbers.tolist() == [0, 20, 40, 60]


def test_packed_in_another_container(
    tmp_path: Path,
    side: int,
    coded_frames: Callable[[int], Frames],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    path = write(tmp_path / "clip.mkv", pack(coded_frames(2)))
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == video.frame_numbers.tolist() == list(range(0, COUNT, 5))


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_avi_that_breaks_off_is_told(
    b_frames: int, tmp_path: Path, side: int, coded_frames: Callable[[int], Frames]
) -> None:
    path = write(tmp_path / "clip.avi", pack(coded_frames(b_frames)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    warnings = read_video(path, SAMPLING, side).warnings
    said = re.compile(r"truncated: \d\d of the 70 frames that the header announces")
    assert any(said.match(warning) for warning in warnings), warnings


def test_chunks_that_the_writer_dropped_are_not_missing(
    tmp_path: Path,
    side: int,
    coded_frames: Callable[[int], Frames],
    read_numbers: Callable[[Any], list[int]],
) -> None:
    """A capture that fell behind leaves empty chunks: the header counts them."""
    times = [time for time in range(COUNT + 13) if not 20 <= time < 33]
    path = write(tmp_path / "clip.avi", coded_frames(0), times)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == COUNT + 13
    video = read_video(path, FrameSampling(max_frames=20), side)
    assert video.warnings == ()
    assert video.sampled_by == "times"
    assert video.times_s.tolist() == pytest.approx([0, 1, 1.9, 3.3, 4, 5, 6, 7, 8], abs=0.01)
    assert read_numbers(video.frames) == video.frame_numbers.tolist()
