"""Windows out of blocks: which frames are in which, held frames, gaps, shots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.video import (
    FrameBlock,
    FrameSampling,
    LongVideo,
    Segmentation,
    Segmenter,
    SegmentFrames,
    VideoReading,
    read_blocks,
)
from xclip_deploy.runtime.video.shots import SnappedSpans

SAMPLING = FrameSampling(max_frames=8)


def block(ticks: Sequence[int], gaps: Sequence[tuple[float, float]] = (), rate: float = 1) -> Any:
    """A block whose pictures are their ticks, each shown a little after its tick."""
    numbers = np.array(ticks, np.int64)
    frames = np.broadcast_to(numbers[:, None, None, None], (len(ticks), 2, 2, 3)).astype(np.uint8)
    return FrameBlock(numbers, numbers / rate + 0.01, frames, tuple(gaps))


def cut(
    segmenter: Segmenter, blocks: Sequence[FrameBlock], gaps: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float, list[int]]]:
    windows: list[SegmentFrames] = []
    for each in blocks:
        windows += segmenter.add(each)
    windows += segmenter.finish(gaps)
    for window in windows:
        assert window.frames[:, 0, 0, 0].tolist() == window.numbers.tolist()
        assert len(window.times_s) == len(window.numbers)
    return [(w.start_s, w.end_s, w.numbers.tolist()) for w in windows]


@pytest.mark.parametrize("size", [1, 5, 30])
def test_overlapping_windows_share_frames(size: int) -> None:
    blocks = [block(range(n, min(n + size, 30))) for n in range(0, 30, size)]
    segmenter = Segmenter(Segmentation("windows", 8, 4), SAMPLING, 29.5)
    assert cut(segmenter, blocks) == [
        *((start, start + 8, list(range(start, start + 8))) for start in range(0, 21, 4)),
        (21.5, 29.5, list(range(22, 30))),
    ]
    assert segmenter.left_out == []


def test_windows_come_as_soon_as_they_are_complete_and_memory_is_bounded() -> None:
    segmenter = Segmenter(Segmentation("windows", 8, 4), SAMPLING, 100_000)
    seen = 0
    for first in range(0, 100_000, 50):
        seen += sum(1 for _ in segmenter.add(block(range(first, first + 50))))
        assert seen >= (first + 50 - 8) // 4
        assert len(segmenter._frames) <= 12
    assert seen + sum(1 for _ in segmenter.finish()) == 24_999


def test_many_frames_are_thinned_evenly() -> None:
    segmenter = Segmenter(Segmentation("windows", 20, 20), FrameSampling(max_frames=4), 40)
    assert cut(segmenter, [block(range(40))]) == [
        (0, 20, [0, 6, 12, 19]),
        (20, 40, [20, 26, 32, 39]),
    ]


def test_a_slide_show_holds_its_frame() -> None:
    segmenter = Segmenter(Segmentation("windows", 8, 8), SAMPLING, 40)
    assert cut(segmenter, [block([0]), block([27, 33])]) == [
        (0, 8, [0]),
        (8, 16, [0]),
        (16, 24, [0]),
        (24, 32, [27]),
        (32, 40, [33]),
    ]


def test_a_gap_leaves_windows_out() -> None:
    segmenter = Segmenter(Segmentation("windows", 8, 8), SAMPLING, 64)
    found = cut(segmenter, [block(range(13)), block([37, 38], [(12, 37)])], [(12, 37), (38, 64)])
    assert found == [
        (0, 8, list(range(8))),
        (8, 16, [8, 9, 10, 11, 12]),
        (32, 40, [37, 38]),
    ]
    assert segmenter.left_out == [(16, 24), (24, 32), (40, 48), (48, 56), (56, 64)]


def test_windows_before_the_first_frame_are_left_out() -> None:
    segmenter = Segmenter(Segmentation("windows", 4, 4), SAMPLING, 12)
    assert cut(segmenter, [block(range(5, 12))]) == [(4, 8, [5, 6, 7]), (8, 12, [8, 9, 10, 11])]
    assert segmenter.left_out == [(0, 4)]


def test_too_many_windows_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="expected 200000 at most"):
        Segmenter(Segmentation("windows", 8, 4), SAMPLING, 1e6)


def test_windows_of_a_file(
    write_clip: Callable[..., Path], read_numbers: Callable[[Any], list[int]], tmp_path: Path
) -> None:
    segmentation = Segmentation("windows", 8, 4)
    path = write_clip(tmp_path / "clip.mp4", 455, rate=10)
    video = read_blocks(path, VideoReading(SAMPLING, 96), segmentation)
    assert isinstance(video, LongVideo)
    segmenter = Segmenter(segmentation, SAMPLING, video.duration_s)
    windows = [window for each in video.blocks() for window in segmenter.add(each)]
    windows += segmenter.finish(video.gaps)
    starts = [window.start_s for window in windows]
    assert starts == pytest.approx([*range(0, 37, 4), 37.5])
    for window in windows:
        assert window.end_s == pytest.approx(window.start_s + 8)
        numbers = read_numbers(window.frames)
        assert numbers == [10 * tick for tick in window.numbers.tolist()]
        assert window.times_s == pytest.approx(window.numbers)


# Shots


def snapped(
    spans: Segmentation, duration_s: float, cuts: Sequence[float]
) -> list[tuple[float, float]]:
    moved = SnappedSpans(spans.spans(duration_s), spans.stride_s or 0)
    for each in cuts:
        moved.add_cut(each)
    found = []
    while (span := moved.next(np.inf)) is not None:
        found.append(span)
    return found


def test_a_fixed_camera_has_plain_windows() -> None:
    shots = Segmentation("shots", 8, 4)
    assert snapped(shots, 61, []) == shots.spans(61)


def test_edges_move_to_cuts_nearby() -> None:
    shots = Segmentation("shots", 8, 4)
    assert snapped(shots, 24, [5, 13]) == [(0, 5), (5, 12), (8, 13), (13, 20), (16, 24)]


def test_without_overlap_nothing_is_left_out() -> None:
    shots = Segmentation("shots", 8, 8)
    found = snapped(shots, 32, [5, 9, 17.5, 24])
    assert found == [(0, 5), (5, 16), (16, 24), (24, 32)]


def test_moved_windows_cover_every_moment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        window_s = float(rng.choice([4, 8, 10]))
        stride_s = window_s * float(rng.choice([0.25, 0.5, 1]))
        duration_s = float(rng.uniform(11, 90))
        cuts = np.sort(rng.uniform(0, duration_s, rng.integers(0, 40))).tolist()
        shots = Segmentation("shots", window_s, stride_s)
        found = snapped(shots, duration_s, cuts)
        assert (found[0][0], found[-1][1]) == (0, pytest.approx(duration_s))
        assert len(found) == len(shots.spans(duration_s))
        for (start_s, end_s), (next_s, _) in pairwise(found):
            assert start_s < end_s
            assert start_s <= next_s <= end_s
        for (start_s, end_s), (plain_s, plain_end_s) in zip(
            found, shots.spans(duration_s), strict=True
        ):
            assert abs(start_s - plain_s) <= stride_s / 2 + 1e-9
            assert plain_end_s - window_s / 2 - stride_s / 2 <= end_s <= plain_end_s


def test_shots_without_their_package_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xclip-deploy\[shots\]'"):
        Segmenter(Segmentation("shots", 8, 4), SAMPLING, 60)


def test_shots_are_found_in_the_frames() -> None:
    pytest.importorskip("scenedetect")
    rng = np.random.default_rng(1)
    shots = [rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1) for _ in "123"]
    pictures = [shots[0]] * 13 + [shots[1]] * 8 + [shots[2]] * 11
    noisy = [
        np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
        for picture in pictures
    ]
    segmenter = Segmenter(Segmentation("shots", 8, 4), SAMPLING, 32)
    whole = FrameBlock(np.arange(32), np.arange(32.0), np.stack(noisy))
    windows = [*segmenter.add(whole), *segmenter.finish()]
    # Cuts at 13 and 21.
    assert [(w.start_s, w.end_s) for w in windows] == [
        (0, 8), (4, 12), (8, 13), (13, 20), (16, 21), (21, 28), (24, 32)
    ]  # fmt: skip
    assert windows[3].numbers.tolist() == list(range(13, 20))
