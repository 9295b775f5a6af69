"""Start and end from the curve of the frames' similarity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.gallery.groups import Groups
from xclip_deploy.runtime.search.refining import curve, neighbourhoods, refine


@pytest.mark.parametrize(("start_s", "stop_s"), [(10.0, 16.0), (13.4, 17.2), (9.0, 21.0)])
def test_a_step_is_found_to_half_a_frame(start_s: float, stop_s: float) -> None:
    times = np.arange(36.0)
    inside = (times >= start_s) & (times < stop_s)
    found = refine(times.tolist(), (np.where(inside, 0.4, 0.1)).tolist(), (12.0, 24.0), (0.0, 36.0))
    assert found.start_s == pytest.approx(start_s, abs=0.51)
    assert found.end_s == pytest.approx(stop_s, abs=0.51)
    assert found.resolution_s == 1


def test_a_dip_of_one_frame_is_bridged() -> None:
    times = np.arange(36.0)
    values = np.where((times >= 12) & (times < 20), 0.4, 0.1)
    values[16] = 0.24
    found = refine(times.tolist(), (values).tolist(), (12.0, 24.0), (0.0, 36.0))
    assert (found.start_s, found.end_s) == pytest.approx((11.5, 19.5))


def test_the_peak_is_the_segments_own() -> None:
    """A better event of a neighbour is that segment's moment."""
    times = np.arange(36.0)
    values = np.where((times >= 2) & (times < 6), 0.6, 0.1)
    values[(times >= 14) & (times < 18)] = 0.4
    found = refine(times.tolist(), (values).tolist(), (12.0, 24.0), (0.0, 36.0))
    assert (found.start_s, found.end_s) == pytest.approx((13.5, 17.5))


def test_a_flat_curve_leaves_the_segment() -> None:
    times = np.arange(36.0)
    found = refine(times.tolist(), (0.3 + 1e-3 * np.sin(times)).tolist(), (12.0, 24.0), (0.0, 36.0))
    assert (found.start_s, found.end_s) == (12, 24)


def test_an_event_that_fills_the_neighbourhood_leaves_the_segment() -> None:
    times = np.arange(36.0)
    values = np.where((times >= 6) & (times < 30), 0.4, 0.1).tolist()
    found = refine(times.tolist(), values, (12.0, 24.0), (0.0, 36.0))
    assert (found.start_s, found.end_s) == (12, 24)


def test_an_event_at_the_end_of_the_video_ends_with_it() -> None:
    times = np.arange(24.0)
    found = refine(
        times.tolist(), np.where(times >= 18, 0.4, 0.1).tolist(), (12.0, 24.0), (0.0, 24.0)
    )
    assert (found.start_s, found.end_s) == pytest.approx((17.5, 24))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frames(count: int) -> None:
    found = refine(
        list(range(count)), np.linspace(0.1, 0.4, count).tolist(), (0.0, 3.0), (0.0, 3.0)
    )
    assert 0 <= found.start_s < found.end_s <= 3


VALUES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40)


@given(VALUES, st.integers(0, 39), st.integers(1, 20), st.floats(0.04, 5))
def test_a_range_is_never_empty_nor_outside(
    values: list[float], first: int, length: int, spacing: float
) -> None:
    times = np.arange(len(values)) * spacing
    first = min(first, len(values) - 1)
    segment = (float(times[first]), float(times[first]) + length * spacing)
    bounds = (0.0, max(segment[1], float(times[-1]) + spacing))
    found = refine(times.tolist(), values, segment, bounds)
    assert bounds[0] <= found.start_s < found.end_s <= bounds[1]
    assert found.resolution_s > 0


def test_frames_of_overlapping_windows_are_averaged() -> None:
    times, values = curve([(0, 1, 2), (1, 2.0000001, 3)], [[1, 1, 1], [2, 3, 4]])
    assert times == [0, 1, 2, 3]
    assert values == [1, 1.5, 2, 4]


def groups(starts_s: list[float], window_s: float) -> Groups:
    rows = np.arange(len(starts_s)) + 100
    begin = np.array(starts_s)
    zeros = np.zeros(len(rows), np.int64)
    return Groups.of_codes(rows, zeros, np.arange(len(rows)), begin, begin + window_s)


@pytest.mark.parametrize(
    ("starts_s", "row", "near"),
    [
        ([0, 12, 24, 36], 101, [100, 101, 102]),
        ([0, 12, 24, 36], 100, [100, 101]),
        ([0, 4, 8, 12, 16, 20, 24], 103, [100, 103, 106]),
        ([0, 12, 40, 52], 101, [100, 101]),
        ([0, 12, 15], 101, [100, 101, 102]),
        ([7], 100, [100]),
    ],
)
def test_neighbours_extend_a_segment_without_a_gap(
    starts_s: list[float], row: int, near: list[int]
) -> None:
    (found,) = neighbourhoods(groups(starts_s, 12), np.array([row]))
    assert found.rows == near
    assert found.bounds == (starts_s[near[0] - 100], starts_s[near[-1] - 100] + 12)


def test_a_segment_without_times_is_alone() -> None:
    unknown = np.full(2, np.nan)
    zeros = np.zeros(2, np.int64)
    alone = Groups.of_codes(np.arange(2), zeros, np.arange(2), unknown, unknown)
    assert [each.rows for each in neighbourhoods(alone, np.array([1, 0]))] == [[1], [0]]
