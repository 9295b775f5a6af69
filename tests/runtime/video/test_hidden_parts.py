"""Intact files of which a player does not show everything: edit lists and crops."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from xclip_deploy.runtime.video import FrameSampling, read_video, resize_and_crop
from xclip_deploy.runtime.video.matroska import NO_CROP, Crop, crop_of

SAMPLING = FrameSampling(frames_per_second=2, max_frames=24)
Numbers = Callable[[Any], list[int]]


# Edit lists


def boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """List the boxes of an MP4 file between two offsets: type, start, end."""
    while start < end:
        (size,) = struct.unpack_from(">I", content, start)
        yield content[start + 4 : start + 8], start, start + size
        start += size


def find(content: bytes, kind: bytes, start: int, end: int) -> tuple[int, int]:
    return next((s, e) for found, s, e in boxes(content, start, end) if found == kind)


def with_edits(path: Path, edits: list[tuple[float, float | None]]) -> Path:
    """Replace the edit list: (length, start), seconds; None shows nothing for that long."""
    content = bytearray(path.read_bytes())
    moov, end = find(content, b"moov", 0, len(content))
    assert end == len(content)  # so that growing it moves no samples
    trak = find(content, b"trak", moov + 8, end)
    (movie_scale,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)
    (media_scale,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    old = find(content, b"edts", trak[0] + 8, trak[1])
    # With B-frames, the first frame's time in the media is not 0.
    (first,) = struct.unpack_from(">i", content, old[0] + 8 + 16 + 4)
    rows = b"".join(
        struct.pack(
            ">Iihh",
            round(length * movie_scale),
            -1 if start is None else round(start * media_scale) + first,
            1,
            0,
        )
        for length, start in edits
    )
    elst = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    new = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    content[old[0] : old[1]] = new
    for start in (moov, trak[0]):
        (size,) = struct.unpack_from(">I", content, start)
        struct.pack_into(">I", content, start, size + len(new) - (old[1] - old[0]))
    path.write_bytes(content)
    return path


EDITS: dict[str, tuple[list[tuple[float, float | None]], list[int]]] = {
    "the end is cut off": ([(3, 0)], [*range(0, 30, 5)]),
    "the start is cut off": ([(3, 3)], [*range(30, 60, 5)]),
    "both": ([(2, 1.5)], [*range(15, 35, 5)]),
    "two parts": ([(1, 0), (2, 3)], [0, 5, *range(30, 50, 5)]),
    "three parts": ([(1, 0), (1, 2.5), (1, 4)], [0, 5, 25, 30, 40, 45]),
    "in another order": ([(2, 3), (1, 0)], [30, 35, 40, 45, 0, 5]),
    "the same twice": ([(2, 0), (2, 0)], [*range(0, 20, 5)] * 2),
    "after a pause": ([(1, None), (3, 0)], [*range(0, 30, 5)]),
    "two parts after a pause": ([(0.5, None), (1, 1), (2, 4)], [10, 15, *range(40, 60, 5)]),
    "all": ([(6, 0)], [*range(0, 60, 5)]),
    "more than there is": ([(8, 0)], [*range(0, 60, 5)]),
}


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("kind", EDITS)
def test_edit_lists(
    kind: str,
    b_frames: int,
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Numbers,
) -> None:
    edits, expected = EDITS[kind]
    options = {"bf": str(b_frames), "g": "12"}
    path = with_edits(write_clip(tmp_path / "clip.mp4", 60, options=options), edits)
    video = read_video(path, SAMPLING, side)
    assert read_numbers(video.frames) == expected
    assert video.frame_numbers.tolist() == list(range(0, 5 * len(expected), 5))
    assert video.times_s.tolist() == pytest.approx([n / 2 for n in range(len(expected))])
    assert video.duration_s == pytest.approx(len(expected) / 2)
    assert video.warnings == ()


def test_a_tail_that_is_not_shown(clips: Path) -> None:
    path = clips / "conditions/tail_trimmed_by_edit_list.mp4"
    video = read_video(path, FrameSampling(max_frames=12), 32)
    assert video.frame_numbers.tolist() == [0, 24, 48]
    assert video.times_s.tolist() == pytest.approx([0, 1, 2])
    assert video.duration_s == pytest.approx(3)
    assert video.warnings == ()


@pytest.mark.parametrize("lost", [1, 5, 12])
def test_a_tail_that_is_lost_is_told(
    lost: int, tmp_path: Path, side: int, write_clip: Callable[..., Path]
) -> None:
    """With an edit list, too: what is announced are the frames that it shows."""
    front = {"movflags": "faststart"}
    path = write_clip(tmp_path / "clip.mp4", 60, options={"bf": "0"}, container_options=front)
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: -sum(sizes[-lost:])])
    (warning,) = read_video(path, SAMPLING, side).warnings
    assert warning == (
        f"truncated: {60 - lost} of the 60 frames that the header announces are there"
    )


# Crops in Matroska


def variable(content: bytes, start: int) -> tuple[int, int]:
    """Read an EBML length: its value, and its own length."""
    count = 9 - content[start].bit_length()
    return int.from_bytes(content[start : start + count], "big") & (1 << 7 * count) - 1, count


def elements(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """List EBML elements: identifier, start of the length, start and end of the content."""
    while start < end:
        length_at = start + 9 - content[start].bit_length()
        size, count = variable(content, length_at)
        is_open = size == (1 << 7 * count) - 1
        begin = length_at + count
        stop = end if is_open else begin + size
        yield content[start:length_at], length_at, begin, stop
        start = stop


def with_crop(path: Path, left: int, right: int, top: int, bottom: int) -> Path:
    """Write crop tags into the video track of a live Matroska file, which has no offsets."""
    content = bytearray(path.read_bytes())
    chain: list[int] = []
    begin, stop = 0, len(content)
    for name in ("18538067", "1654ae6b", "ae", "e0"):
        length_at, begin, stop = next(
            (at, b, e)
            for found, at, b, e in elements(content, begin, stop)
            if found == bytes.fromhex(name)
        )
        chain.append(length_at)
    tags = {"54cc": left, "54dd": right, "54bb": top, "54aa": bottom}
    added = b"".join(
        bytes.fromhex(name) + b"\x82" + value.to_bytes(2, "big") for name, value in tags.items()
    )
    content[stop:stop] = added
    for length_at in chain:
        size, count = variable(content, length_at)
        if size != (1 << 7 * count) - 1:
            grown = size + len(added) | 1 << 7 * count
            content[length_at : length_at + count] = grown.to_bytes(count, "big")
    path.write_bytes(content)
    return path


@pytest.fixture
def live(tmp_path: Path, write_clip: Callable[..., Path]) -> Path:
    options = {"crf": "1", "bf": "2"}
    return write_clip(tmp_path / "c.mkv", 40, options=options, container_options={"live": "1"})


def test_matroska_crops_are_cropped(
    live: Path, side: int, draw: Callable[[int], NDArray[np.uint8]]
) -> None:
    whole = read_video(live, SAMPLING, side)
    video = read_video(with_crop(live, 24, 8, 10, 6), SAMPLING, side)
    assert video.frame_numbers.tolist() == whole.frame_numbers.tolist()
    for number, picture in zip(video.frame_numbers, video.frames, strict=True):
        expected = resize_and_crop(draw(int(number))[10:90, 24:88], side)
        assert np.abs(picture.astype(int) - expected).mean() < 3
    assert np.abs(video.frames.astype(int) - whole.frames).mean() > 20
    assert video.warnings == whole.warnings == ()


def test_a_crop_that_leaves_nothing_is_no_crop() -> None:
    picture = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    assert Crop(3, 3).apply(picture).shape == Crop(0, 0, 9, 0).apply(picture).shape == (8, 6, 3)
    assert np.array_equal(Crop(1, 2, 3, 4).apply(picture), picture[3:4, 1:4])


@pytest.mark.parametrize("seed", range(30))
def test_damaged_trees_have_no_crop_and_no_end(live: Path, seed: int, tmp_path: Path) -> None:
    content = bytearray(with_crop(live, 1, 2, 3, 4).read_bytes())
    assert crop_of(live, 0) == (1, 2, 3, 4)
    assert crop_of(live, 1) == NO_CROP
    random = np.random.default_rng(seed)
    for place in random.integers(0, 600, 5):
        content[place] = random.integers(0, 256)
    damaged = tmp_path / "damaged.mkv"
    damaged.write_bytes(content[: random.integers(1, len(content))])
    assert isinstance(crop_of(damaged, 0).left, int)
    assert crop_of(tmp_path / "gone.mkv", 0) == NO_CROP
