"""Damage to long videos: what it costs, and that it is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from long_videos import KEYS, RATE, READING, WINDOWS, Read, Write, reader

from xclip_deploy.errors import VideoReadError
from xclip_deploy.runtime.video import (
    LongVideo,
    read_blocks,
)


@pytest.fixture
def read(read_numbers: Callable[[Any], list[int]]) -> Callable[..., Read]:
    return reader(read_numbers)


def overwrite(path: Path, begin: float, end: float, fill: str) -> Path:
    """Overwrite a part of a file, given in fractions of it."""
    content = bytearray(path.read_bytes())
    first, last = int(begin * len(content)), int(end * len(content))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, last - first, np.uint8).tobytes()
    content[first:last] = noise if fill == "noise" else bytes(last - first)
    path.write_bytes(content)
    return path


EVERY_DAYS_FILL = {"mp4": "zeros", "mkv": "noise", "ts": "zeros", "avi": "noise"}


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        pytest.param(
            f"clip.{kind}", fill, marks=() if fill == EVERY_DAYS_FILL[kind] else pytest.mark.slow
        )
        for kind, fill in product(EVERY_DAYS_FILL, ("zeros", "noise"))
    ],
)
def test_damage_in_the_middle_costs_only_itself(
    name: str, fill: str, write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / name, 1200, rate=RATE, options=KEYS)
    found = read(overwrite(path, 0.4, 0.6, fill))
    assert found.video.duration_s == pytest.approx(120, abs=0.2)
    right = [
        abs(number / RATE - time_s) < 0.06
        for number, time_s in zip(found.numbers, found.times_s, strict=True)
    ]
    assert all(right), [
        entry for entry, ok in zip(zip(*found[1:], strict=True), right, strict=True) if not ok
    ]
    assert found.ticks[:40] == list(range(40))
    assert found.ticks[-25:] == list(range(95, 120))
    ((start_s, end_s),) = found.video.gaps
    assert 40 < start_s < 60 < end_s < 95
    lost = sorted(set(range(120)) - set(found.ticks))
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert start_s == pytest.approx(lost[0], abs=1.6)
    assert end_s == pytest.approx(lost[-1], abs=1.6)
    assert any(re.fullmatch(r"no frames between \d:\d\d and \d:\d\d: damaged", line)
               for line in found.video.warnings)  # fmt: skip


@pytest.mark.parametrize(("end", "fill"), [(0.6, "noise"), (0.6, "zeros"), (0.6003, "zeros")])
def test_damage_in_flv_never_shifts_frames(
    end: float, fill: str, write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    """What damage leaves can read as an FLV tag of any length, which swallows good frames too."""
    found = read(overwrite(write_clip(tmp_path / "clip.flv", 1200, rate=RATE), 0.4, end, fill))
    assert found.ticks[:40] == list(range(40))
    assert found.numbers == pytest.approx(np.multiply(found.times_s, RATE), abs=0.6)
    lost = sorted(set(range(120)) - set(found.ticks))
    assert lost
    assert any(start_s - 1.6 < lost[0] < end_s for start_s, end_s in found.video.gaps)
    assert any("damaged" in line for line in found.video.warnings)


def test_a_broken_packet_costs_its_group(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 600, rate=RATE, options=KEYS)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        (broken,) = [p for p in packets if p.is_keyframe and p.pts * p.time_base == 30]
        assert broken.pos is not None
        place, size = broken.pos, broken.size
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    found = read(path)
    assert sorted(set(range(60)) - set(found.ticks)) in ([30, 31], [31])
    assert found.numbers == pytest.approx([RATE * t for t in found.ticks], abs=5)
    assert found.numbers[-28:] == list(range(320, 600, 10))


def test_a_file_without_any_frame_is_refused(write_clip: Write, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 300, rate=RATE, options=KEYS)
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for place, size in places:
        assert place is not None
        content[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(content)
    video = read_blocks(path, READING, WINDOWS)
    assert isinstance(video, LongVideo)
    with pytest.raises(VideoReadError, match="no frame could be decoded"):
        list(video.blocks())


def test_a_cut_off_file_says_so(
    write_clip: Write, read: Callable[..., Read], tmp_path: Path
) -> None:
    path = write_clip(
        tmp_path / "clip.mp4", 600, rate=RATE, container_options={"movflags": "faststart"}
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    found = read(path)
    assert found.numbers == [RATE * tick for tick in found.ticks]
    assert 20 < len(found.ticks) < 50
    assert any(line.startswith("truncated: ") for line in found.video.warnings)
