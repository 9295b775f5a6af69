from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.video import FrameSampling, sample_frame_numbers

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[2] / "golden" / "frame_sampling.json").read_text()
)

frame_counts = st.integers(1, 5000)
frame_rates = st.floats(0.01, 240)
whole_rates = st.integers(1, 60)
max_frames = st.integers(1, 100)


@pytest.mark.parametrize("limit", [8, 12, 64])
@pytest.mark.parametrize("name", GOLDEN)
def test_authors_frame_numbers(name: str, limit: int) -> None:
    clip = GOLDEN[name]
    numbers = sample_frame_numbers(
        clip["frame_count"], clip["int_fps"], FrameSampling(max_frames=limit)
    )
    assert numbers.tolist() == clip["selected"][str(limit)]
    assert numbers.dtype == np.int64


def test_fraction_of_the_frame_rate_is_dropped() -> None:
    numbers = sample_frame_numbers(100, 29.97, FrameSampling(max_frames=64))
    assert numbers.tolist() == [0, 29, 58, 87]


def test_several_a_second_as_the_authors_do() -> None:
    # 30 // 4 = 7 gives five offsets below 30, of which the authors keep four.
    sampling = FrameSampling(frames_per_second=4, max_frames=64)
    assert sample_frame_numbers(45, 30, sampling).tolist() == [0, 7, 14, 21, 30, 37, 44]


def test_more_a_second_than_there_are_takes_every_frame() -> None:
    sampling = FrameSampling(frames_per_second=50, max_frames=64)
    assert sample_frame_numbers(30, 25, sampling).tolist() == list(range(30))


def test_less_than_one_a_second() -> None:
    sampling = FrameSampling(frames_per_second=0.1, max_frames=64)
    assert sample_frame_numbers(901, 30, sampling).tolist() == [0, 300, 600, 900]


def test_frame_rate_below_one_counts_as_one() -> None:
    assert sample_frame_numbers(3, 0.2, FrameSampling(max_frames=64)).tolist() == [0, 1, 2]


@given(frame_counts, frame_rates, st.floats(0.01, 60), max_frames)
def test_numbers_are_valid(count: int, rate: float, per_second: float, limit: int) -> None:
    sampling = FrameSampling(frames_per_second=per_second, max_frames=limit)
    numbers = sample_frame_numbers(count, rate, sampling)
    assert 1 <= len(numbers) <= limit
    assert numbers[0] == 0
    assert numbers[-1] < count
    assert (np.diff(numbers) > 0).all()


@given(frame_counts, frame_rates, whole_rates)
def test_every_second_is_covered(count: int, rate: float, per_second: int) -> None:
    sampling = FrameSampling(frames_per_second=per_second, max_frames=1_000_000)
    numbers = sample_frame_numbers(count, rate, sampling)
    assert set(range(0, count, max(1, int(rate)))) <= set(numbers.tolist())


@given(frame_counts, frame_rates, whole_rates, max_frames)
def test_limit_keeps_first_and_last_candidate(
    count: int, rate: float, per_second: int, limit: int
) -> None:
    every = FrameSampling(frames_per_second=per_second, max_frames=1_000_000)
    few = FrameSampling(frames_per_second=per_second, max_frames=limit)
    candidates = sample_frame_numbers(count, rate, every)
    numbers = sample_frame_numbers(count, rate, few)
    assert set(numbers.tolist()) <= set(candidates.tolist())
    if limit > 1:
        assert numbers[-1] == candidates[-1]


@pytest.mark.parametrize(("count", "rate"), [(0, 25), (-1, 25), (1, 0), (1, float("nan"))])
def test_impossible_videos_are_refused(count: int, rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="expected"):
        sample_frame_numbers(count, rate, FrameSampling(max_frames=8))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_frames": 0},
        {"max_frames": 8, "frames_per_second": 0},
        {"max_frames": 8, "frames_per_second": float("inf")},
        {"max_frames": 8, "unknown": 1},
        {"max_frames": 8, "end_s": 0},
        {"max_frames": 8, "end_s": float("inf")},
    ],
)
def test_impossible_samplings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError):
        FrameSampling(**fields)  # type: ignore[arg-type]


# Videos of which only the start is looked at


def test_the_second_of_the_end_is_taken_too() -> None:
    sampling = FrameSampling(max_frames=64, end_s=31)
    numbers = sample_frame_numbers(60 * 25, 25, sampling)
    assert numbers.tolist() == [second * 25 for second in range(32)]


def test_a_fraction_of_a_second_at_the_end_changes_nothing() -> None:
    numbers = sample_frame_numbers(100, 10, FrameSampling(max_frames=64, end_s=2.9))
    assert numbers.tolist() == [0, 10, 20]


def test_several_a_second_up_to_the_end() -> None:
    # As the authors' loops have it: every offset within each second up to the last.
    sampling = FrameSampling(frames_per_second=2, max_frames=64, end_s=1)
    assert sample_frame_numbers(100, 10, sampling).tolist() == [0, 5, 10, 15]


def test_the_start_is_thinned_out_evenly() -> None:
    numbers = sample_frame_numbers(100, 1, FrameSampling(max_frames=3, end_s=10))
    assert numbers.tolist() == [0, 5, 10]


@given(frame_counts, frame_rates, st.floats(0.01, 60), max_frames, st.floats(0.01, 5000))
def test_an_end_samples_the_video_up_to_there(
    count: int, rate: float, per_second: float, limit: int, end_s: float
) -> None:
    whole = FrameSampling(frames_per_second=per_second, max_frames=limit)
    start = whole.model_copy(update={"end_s": end_s})
    fps = max(1, int(rate))
    before = [number for number in range(count) if number // fps <= end_s]
    found = sample_frame_numbers(count, rate, start)
    assert found.tolist() == sample_frame_numbers(len(before), rate, whole).tolist()


@given(frame_counts, frame_rates, whole_rates)
def test_an_end_leaves_a_prefix_of_the_candidates(count: int, rate: float, end_s: int) -> None:
    every = FrameSampling(max_frames=1_000_000)
    numbers = sample_frame_numbers(count, rate, every)
    found = sample_frame_numbers(count, rate, every.model_copy(update={"end_s": end_s}))
    assert found.tolist() == numbers[: end_s + 1].tolist()
