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
from xclip_deploy.runtime.video.mp4_boxes import clean_aperture_of, dolby_vision_of

SAMPLING = FrameSampling(frames_per_second=2, max_frames=24)
Numbers = Callable[[Any], list[int]]
Content = bytes | bytearray


# Edit lists


def boxes(content: Content, start: int, end: int) -> Iterator[tuple[Content, int, int]]:
    """List the boxes of an MP4 file between two offsets: type, start, end."""
    while start < end:
        (size,) = struct.unpack_from(">I", content, start)
        yield content[start + 4 : start + 8], start, start + size
        start += size


def find(content: Content, kind: bytes, start: int, end: int) -> tuple[int, int]:
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


# Clean apertures and Dolby Vision in MP4


def with_entry_box(path: Path, kind: bytes, box: bytes) -> Path:
    """Put a box into the sample entry of the first track."""
    content = bytearray(path.read_bytes())
    chain: list[int] = []
    start, end = 0, len(content)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        box_start, box_end = find(content, name, start, end)
        chain.append(box_start)
        start, end = box_start + 8, box_end
    assert find(content, b"moov", 0, len(content))[1] == len(content)  # no sample moves
    entry = start + 8
    (size,) = struct.unpack_from(">I", content, entry)
    added = struct.pack(">I4s", 8 + len(box), kind) + box
    content[entry + size : entry + size] = added
    for position in (*chain, entry):
        (size,) = struct.unpack_from(">I", content, position)
        struct.pack_into(">I", content, position, size + len(added))
    path.write_bytes(content)
    return path


def clap(width: int, height: int, across: tuple[int, int], down: tuple[int, int]) -> bytes:
    return struct.pack(">IIIIiIiI", width, 1, height, 1, *across, *down)


# Aperture, and the rows and columns that it leaves.
APERTURES: dict[str, tuple[bytes, tuple[slice, slice]]] = {
    "in the middle": (clap(64, 80, (0, 1), (0, 1)), (slice(8, 88), slice(16, 80))),
    "aside": (clap(64, 80, (8, 1), (-2, 1)), (slice(6, 86), slice(24, 88))),
    "by halves": (clap(65, 79, (1, 2), (-3, 2)), (slice(7, 86), slice(16, 81))),
    "all of it": (clap(96, 96, (0, 1), (0, 1)), (slice(96), slice(96))),
    "larger than the picture": (clap(104, 96, (0, 1), (0, 1)), (slice(96), slice(96))),
    "outside": (clap(64, 80, (40, 1), (0, 1)), (slice(96), slice(96))),
    "nothing": (clap(0, 0, (0, 1), (0, 1)), (slice(96), slice(96))),
    "over zero": (struct.pack(">8I", 64, 0, 80, 1, 0, 1, 0, 1), (slice(96), slice(96))),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("kind", APERTURES)
def test_clean_apertures_are_cropped(
    kind: str,
    suffix: str,
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    draw: Callable[[int], NDArray[np.uint8]],
) -> None:
    box, (rows, columns) = APERTURES[kind]
    path = write_clip(tmp_path / f"c{suffix}", 20, options={"crf": "1"}, with_audio=True)
    video = read_video(with_entry_box(path, b"clap", box), SAMPLING, side)
    for number, picture in zip(video.frame_numbers, video.frames, strict=True):
        expected = resize_and_crop(draw(int(number))[rows, columns], side)
        assert np.abs(picture.astype(int) - expected).mean() < 3
    assert video.warnings == ()


def dolby(profile: int, compatibility: int) -> bytes:
    """Write a record of 24 bytes: version 1.0, level 6, one layer and its metadata."""
    return bytes([1, 0, profile << 1, 6 << 3 | 0b101, compatibility << 4]) + bytes(19)


@pytest.mark.parametrize(
    ("profile", "compatibility", "kind", "is_told"),
    [
        (5, 0, b"dvcC", True),
        (8, 1, b"dvvC", False),
        (8, 4, b"dvvC", False),
        (7, 6, b"dvcC", False),
        (10, 0, b"dvvC", True),
        (10, 1, b"dvvC", False),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_dolby_vision_for_its_decoders_alone_is_told(
    profile: int,
    compatibility: int,
    kind: bytes,
    is_told: bool,
    suffix: str,
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
) -> None:
    options = {"live": "1"} if suffix == ".mkv" else {}
    path = write_clip(tmp_path / f"c{suffix}", 20, container_options=options)
    record = dolby(profile, compatibility)
    if suffix == ".mkv":
        mapping = b"\x41\xe7\x84" + kind + b"\x41\xed\x98" + record
        insert(path, ("18538067", "1654ae6b", "ae"), b"\x41\xe4\xa2" + mapping)
    else:
        with_entry_box(path, kind, record)
    warnings = read_video(path, SAMPLING, side).warnings
    said = f"Dolby Vision profile {profile} is not converted, so colours are wrong"
    assert [warning.startswith(said) for warning in warnings] == [True] * is_told


@pytest.mark.parametrize("seed", range(30))
def test_damaged_boxes_have_no_aperture_and_no_end(
    seed: int, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    box, _ = APERTURES["in the middle"]
    path = with_entry_box(write_clip(tmp_path / "c.mp4", 4), b"clap", box)
    assert clean_aperture_of(path, 1, 96, 96) == (16, 16, 8, 8)
    assert clean_aperture_of(path, 2, 96, 96) == NO_CROP
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    start = content.index(b"moov")
    for place in random.integers(start - 4, len(content), 12):
        content[place] = random.integers(0, 256)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content[: random.integers(start, len(content))])
    assert isinstance(clean_aperture_of(damaged, 1, 96, 96).left, int)
    dolby_vision_of(damaged, 1)
    assert clean_aperture_of(tmp_path / "gone.mp4", 1, 96, 96) == NO_CROP


# Crops in Matroska


def variable(content: Content, start: int) -> tuple[int, int]:
    """Read an EBML length: its value, and its own length."""
    count = 9 - content[start].bit_length()
    return int.from_bytes(content[start : start + count], "big") & (1 << 7 * count) - 1, count


def elements(content: Content, start: int, end: int) -> Iterator[tuple[Content, int, int, int]]:
    """List EBML elements: identifier, start of the length, start and end of the content."""
    while start < end:
        length_at = start + 9 - content[start].bit_length()
        size, count = variable(content, length_at)
        is_open = size == (1 << 7 * count) - 1
        begin = length_at + count
        stop = end if is_open else begin + size
        yield content[start:length_at], length_at, begin, stop
        start = stop


def insert(path: Path, parents: tuple[str, ...], added: bytes) -> Path:
    """Put elements at the end of an element of a live Matroska file, which has no offsets."""
    content = bytearray(path.read_bytes())
    chain: list[int] = []
    begin, stop = 0, len(content)
    for name in parents:
        length_at, begin, stop = next(
            (at, b, e)
            for found, at, b, e in elements(content, begin, stop)
            if found == bytes.fromhex(name)
        )
        chain.append(length_at)
    content[stop:stop] = added
    for length_at in chain:
        size, count = variable(content, length_at)
        if size != (1 << 7 * count) - 1:
            grown = size + len(added) | 1 << 7 * count
            content[length_at : length_at + count] = grown.to_bytes(count, "big")
    path.write_bytes(content)
    return path


def with_crop(path: Path, left: int, right: int, top: int, bottom: int) -> Path:
    """Write crop tags into the video track of a live Matroska file."""
    tags = {"54cc": left, "54dd": right, "54bb": top, "54aa": bottom}
    added = b"".join(
        bytes.fromhex(name) + b"\x82" + value.to_bytes(2, "big") for name, value in tags.items()
    )
    return insert(path, ("18538067", "1654ae6b", "ae", "e0"), added)


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
