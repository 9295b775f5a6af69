"""One frame a second means by time, where frame numbers do not tell time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xclip_deploy.runtime.decoding import DecoderPool, FileContent
from xclip_deploy.runtime.video import FrameSampling, VideoFrames, VideoReading, read_video
from xclip_deploy.runtime.video import pyav_reader as reader_module
from xclip_deploy.runtime.video.sampling import (
    has_constant_rate,
    sample_frame_numbers,
    sample_frame_times,
)

SAMPLING = FrameSampling(max_frames=64)
Times = NDArray[np.float64]


def even(count: int, rate: float) -> Times:
    return np.arange(count) / rate


def bursts(random: np.random.Generator) -> Times:
    """Stretches of other rates, from 60 frames a second to one every 3 s, with stalls."""
    gaps: list[float] = []
    for _ in range(int(random.integers(2, 7))):
        rate = float(random.choice([60, 30, 24, 10, 3, 0.9, 0.5, 0.34]))
        count = int(random.integers(1, max(2, int(4 * rate + 2))))
        gaps.extend((1 / rate) * random.uniform(0.9, 1.1, count))
        if random.random() < 0.3:
            gaps.append(float(random.uniform(0.5, 4)))
    return np.concatenate([[0.0], np.cumsum(gaps)])


# What counts as constant


@pytest.mark.parametrize("rate", [1, 12.5, 15, 23.976, 24, 25, 29.97, 30, 59.94, 120])
def test_rounded_timestamps_are_constant(rate: float) -> None:
    for resolution in (1 / 1000, 1 / 90_000, 1 / 600):
        times = np.round(even(3000, rate) / resolution) * resolution
        assert has_constant_rate(np.unique(times), rate)


def test_small_errors_of_the_declared_rate_are_constant() -> None:
    assert has_constant_rate(even(3000, 29.97), 30)
    assert has_constant_rate(even(50, 10), 10.4)
    assert not has_constant_rate(even(50, 10), 11)
    assert not has_constant_rate(even(50, 10), 0.0)


def test_a_late_first_frame_is_constant() -> None:
    assert has_constant_rate(np.concatenate([[0], even(300, 25) + 2 / 25]), 25)


def test_few_frames() -> None:
    assert has_constant_rate(np.zeros(1), 30)
    assert has_constant_rate(np.array([0, 1 / 30]), 30)
    assert not has_constant_rate(np.array([0.0, 5.0, 10.0]), 30)  # a slide show in a hurry


@pytest.mark.parametrize("stall_s", [0.3, 1.0, 10.0])
def test_a_stall_is_not_constant(stall_s: float) -> None:
    times = even(600, 30)
    times[300:] += stall_s
    assert not has_constant_rate(times, 599 / times[-1])


# Which frames are taken


def test_even_times_give_even_frames() -> None:
    assert sample_frame_times(even(95, 10), SAMPLING).tolist() == list(range(0, 95, 10))
    assert sample_frame_times(even(95, 10) + 7, SAMPLING).tolist() == list(range(0, 95, 10))
    dense = FrameSampling(frames_per_second=1000, max_frames=1000)
    assert sample_frame_times(even(95, 10), dense).tolist() == list(range(95))
    assert sample_frame_times(np.zeros(1), SAMPLING).tolist() == [0]
    sparse = FrameSampling(frames_per_second=0.25, max_frames=64)
    assert sample_frame_times(even(95, 10), sparse).tolist() == [0, 40, 80]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("rate", [1.0, 0.5, 3.0])
def test_neighbours_are_as_close_as_the_frames_allow(seed: int, rate: float) -> None:
    times = bursts(np.random.default_rng(seed))
    sampling = FrameSampling(frames_per_second=rate, max_frames=10_000)
    numbers = sample_frame_times(times, sampling)
    assert numbers.dtype == np.int64
    assert numbers[0] == 0
    assert (np.diff(numbers) > 0).all()
    for before, behind in itertools.pairwise(numbers):
        largest = np.diff(times[before : behind + 1]).max()
        assert times[behind] - times[before] <= max(1.5 / rate, largest) + 1e-9
    assert times[-1] - times[numbers[-1]] < 1 / rate + np.diff(times).max() / 2
    # About as many as there are intervals, whatever the bursts.
    assert len(numbers) <= 1.5 * times[-1] * rate + 2


def test_long_videos_are_thinned_out_and_ends_are_kept() -> None:
    times = bursts(np.random.default_rng(1))
    whole = sample_frame_times(times, SAMPLING)
    few = sample_frame_times(times, FrameSampling(max_frames=5))
    assert few.tolist() == whole[np.linspace(0, len(whole) - 1, 5, dtype=int)].tolist()
    cut = sample_frame_times(times, FrameSampling(max_frames=64, end_s=3.7))
    assert cut.tolist() == sample_frame_times(times[times < 4], SAMPLING).tolist()
    assert times[-1] > 5


# Files


def test_a_burst(clips: Path) -> None:
    """30 frames a second for 2 s, then one every 2 s until 62 s."""
    path = clips / "conditions/burst.mp4"
    video = read_video(path, SAMPLING, 32)
    assert video.sampled_by == "times"
    assert video.frame_numbers.tolist() == [0, 30, *range(60, 90)]
    assert video.times_s.tolist() == pytest.approx([0, 1, *range(2, 62, 2)])
    assert video.duration_s == pytest.approx(62)
    assert video.frame_rate == pytest.approx(89 / 60)
    assert video.warnings == ()
    few = read_video(path, FrameSampling(max_frames=12), 32)
    assert np.diff(few.times_s).max() <= 6
    assert few.sampled_by == "times"


def test_decoders_pass_on_how_frames_were_chosen(clips: Path) -> None:
    with DecoderPool[str](VideoReading(SAMPLING, 32), workers=1) as pool:
        for name in ("conditions/burst.mp4", "conditions/dog_square.mp4"):
            pool.submit(name, clips / name)
        found = dict(taken for _ in range(2) if (taken := pool.take()) is not None)
    kinds = {}
    for name, content in found.items():
        assert isinstance(content, FileContent)
        assert isinstance(content.frames, VideoFrames)
        kinds[name] = content.frames.sampled_by
    assert kinds == {"conditions/burst.mp4": "times", "conditions/dog_square.mp4": "frame numbers"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("has_shortcuts", [True, False])
def test_times_of_frames_are_those_at_which_they_are_shown(
    seed: int,
    suffix: str,
    has_shortcuts: bool,
    tmp_path: Path,
    side: int,
    write_clip: Callable[..., Path],
    read_numbers: Callable[[Any], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = np.unique((1000 * bursts(np.random.default_rng(seed))).round()).astype(int)[:150]
    path = write_clip(
        tmp_path / f"clip{suffix}", len(times), times=times.tolist(), options={"bf": "3", "g": "12"}
    )
    if not has_shortcuts:
        monkeypatch.setattr(reader_module, "_targets", lambda *_: ([], "frame numbers"))
    video = read_video(path, SAMPLING, side)
    assert video.sampled_by == "times"
    assert read_numbers(video.frames) == video.frame_numbers.tolist()
    assert video.frame_numbers.tolist() == sample_frame_times(times / 1000, SAMPLING).tolist()
    assert np.allclose(video.times_s, times[video.frame_numbers] / 1000, atol=0.001)
    assert video.warnings == ()


def test_constant_rates_keep_the_numbers_of_the_authors(clips: Path) -> None:
    video = read_video(clips / "sam2_dog.mp4", SAMPLING, 32)
    assert video.sampled_by == "frame numbers"
    assert video.frame_numbers.tolist() == sample_frame_numbers(289, 29.97, SAMPLING).tolist()
