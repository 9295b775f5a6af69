"""Windows out of blocks: which frames are in which, held frames, gaps, shots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from xclip_deploy.runtime.video.shots import ShotPicker, ShotSpans
from xclip_deploy.runtime.video.ticks import TickPicker

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


def spans_of(
    policy: Segmentation, duration_s: float, cuts: Sequence[float], step_s: float
) -> list[tuple[float, float]]:
    """The spans, asked for as the video becomes known in steps, none before it is certain."""
    spans = ShotSpans(policy, duration_s)
    found = []
    waiting = list(cuts)
    known_s = 0.0
    while known_s < duration_s + step_s:
        known_s += step_s
        # Blocks bring cuts ahead of the frames.
        while waiting and waiting[0] < known_s + 5:
            spans.add_cut(waiting.pop(0))
        while (span := spans.next(min(known_s, duration_s))) is not None:
            assert span[1] <= known_s + 1e-9
            found.append(span)
    while (span := spans.next(np.inf)) is not None:
        found.append(span)
    return found


SHOTS = Segmentation("shots", 8, 4)


def test_a_fixed_camera_has_plain_windows() -> None:
    assert spans_of(SHOTS, 61, [], 0.7) == SHOTS.spans(61)


def test_no_window_lies_across_a_cut() -> None:
    found = spans_of(SHOTS, 40, [5, 18, 26], 1)
    assert found == [(0, 5), (5, 13), (9, 17), (10, 18), (18, 26), (26, 34), (30, 38), (32, 40)]


@given(
    window_s=st.sampled_from([4.0, 8.0, 10.0]),
    part=st.sampled_from([0.25, 0.5, 1.0]),
    duration_s=st.floats(11, 90),
    places=st.lists(st.floats(0.01, 0.99), max_size=30, unique=True),
    step_s=st.floats(0.05, 20),
)
def test_each_shot_is_cut_as_a_video_of_its_length(
    window_s: float, part: float, duration_s: float, places: list[float], step_s: float
) -> None:
    policy = Segmentation("shots", window_s, window_s * part)
    edges = [0.0, *sorted(place * duration_s for place in places), duration_s]
    expected = [
        (start_s + first_s, start_s + last_s)
        for start_s, end_s in pairwise(edges)
        for first_s, last_s in policy.spans(end_s - start_s)
    ]
    found = spans_of(policy, duration_s, edges[1:-1], step_s)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def picked(
    times_s: Sequence[float], cuts: Sequence[float], end_s: float, stride_s: float
) -> tuple[list[tuple[int, float]], list[tuple[float, int]]]:
    """Tick and time of every choice, and the cuts; each frame is its own time."""
    picker: ShotPicker[float] = ShotPicker(1.0, end_s, stride_s)
    choices = [
        picker.offer(time_s, time_s, is_damaged=False, is_cut=time_s in cuts) for time_s in times_s
    ]
    choices.append(picker.finish())
    found = [choice for choice in choices if choice is not None]
    assert [choice.frame for choice in found] == pytest.approx([each.time_s for each in found])
    return [(choice.tick, choice.frame) for choice in found], list(picker.take_cuts())


def test_the_clock_begins_anew_at_a_cut() -> None:
    times_s = [n / 4 for n in range(24)]
    found, cuts = picked(times_s, [2.75], 6, 2)
    # Tick 3 of the first shot would lie behind the cut.
    assert [time_s for _, time_s in found] == [0, 1, 2, 2.75, 3.75, 4.75, 5.75]
    assert [tick for tick, _ in found] == list(range(7))
    assert cuts == [(2.75, 3)]


def test_cuts_that_follow_too_soon_are_none() -> None:
    times_s = [n / 4 for n in range(48)]
    _, cuts = picked(times_s, times_s, 12, 4)  # flicker: every frame is a cut
    assert [start_s for start_s, _ in cuts] == [2, 4, 6, 8, 10]
    _, cuts = picked(times_s, [11.25], 12, 4)
    assert cuts == []


def test_without_cuts_the_choice_is_a_tick_pickers() -> None:
    times_s = np.sort(np.random.default_rng(3).uniform(0, 50, 200)).tolist()
    plain: TickPicker[float] = TickPicker(1.0, 50)
    choices = [plain.offer(time_s, time_s, is_damaged=False) for time_s in times_s]
    expected = [(each.tick, each.frame) for each in (*choices, plain.finish()) if each is not None]
    assert picked(times_s, [], 50, 4) == (expected, [])


def test_shots_without_their_package_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xclip-deploy\[shots\]'"):
        Segmenter(SHOTS, SAMPLING, 60)


def write_shots(path: Path, seconds: Sequence[float], rate: int = 10) -> None:
    """Write a video of noisy shots that differ in brightness; a square moves through each."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for number, length_s in enumerate(seconds):
            count = round(length_s * rate)
            background = 60 + 50 * (number % 3) + rng.normal(0, 5, (96, 96, 1))
            for place in range(count):
                picture = np.broadcast_to(background, (96, 96, 3)).copy()
                left = round(70 * place / count)
                picture[30:50, left : left + 20] = (230, 40, 40)
                frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8))
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def segments_of(path: Path, policy: Segmentation) -> list[SegmentFrames]:
    video = read_blocks(path, VideoReading(SAMPLING, 96), policy)
    assert isinstance(video, LongVideo)
    segmenter = Segmenter(policy, SAMPLING, video.duration_s)
    windows = [window for each in video.blocks() for window in segmenter.add(each)]
    return [*windows, *segmenter.finish(video.gaps)]


def test_a_shot_is_read_as_a_file_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    lengths = [5.3, 6.6, 13.1, 4.4]
    write_shots(tmp_path / "whole.mp4", lengths)
    windows = segments_of(tmp_path / "whole.mp4", SHOTS)
    starts = [0, *np.cumsum(lengths)]
    assert [(w.start_s, w.end_s) for w in windows] == [
        pytest.approx(span, abs=0.01)
        for span in [
            (0, starts[1]),
            (starts[1], starts[2]),
            *((starts[2] + x, starts[2] + x + 8) for x in (0, 4, 5.1)),
            (starts[3], starts[4]),
        ]
    ]
    for place, number in ((0, 0), (1, 1), (5, 3)):
        assert windows[place].times_s == pytest.approx(
            starts[number] + np.arange(np.ceil(lengths[number])), abs=0.01
        )
    numbers = np.concatenate([window.numbers for window in windows])
    assert len(set(numbers.tolist())) == 6 + 7 + 14 + 5  # overlapping windows share frames
    plain = segments_of(tmp_path / "whole.mp4", Segmentation("windows", 8, 4))
    assert [w.start_s for w in plain] == pytest.approx([*range(0, 21, 4), 21.4])


def test_a_moving_thing_is_no_cut(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    write_shots(tmp_path / "one.mp4", [20])
    windows = segments_of(tmp_path / "one.mp4", SHOTS)
    assert [(w.start_s, w.end_s) for w in windows] == SHOTS.spans(20)
