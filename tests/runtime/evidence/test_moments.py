from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.evidence import find_moment


def test_the_time_that_is_nearest_to_the_best_frame() -> None:
    moment = find_moment(np.array([0.1, 0.3, 0.2]), (0.0, 1.0, 3.0), 4.0)
    assert (moment.start_s, moment.end_s) == (0.5, 2.0)
    assert moment.best_frame_time_s == 1.0
    assert moment.resolution_s == 2.0
    assert str(moment) == "0:00.5 to 0:02.0 (sampled frames are 2 s apart)"


def test_frames_that_are_as_good_belong_to_it() -> None:
    moment = find_moment(np.array([0.1, 0.295, 0.3, 0.2, 0.3]), (0.0, 1.0, 2.0, 3.0, 4.0), 4.5)
    assert (moment.start_s, moment.end_s, moment.resolution_s) == (0.5, 2.5, 1.0)


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.5, 0.1], (0.0, 1.0)), ([0.1, 0.5], (1.0, 2.5))]
)
def test_at_either_end(scores: list[float], expected: tuple[float, float]) -> None:
    moment = find_moment(np.array(scores), (0.0, 2.0), 2.5)
    assert (moment.start_s, moment.end_s) == expected


def test_a_single_frame_is_the_whole_video() -> None:
    moment = find_moment(np.array([0.2]), (0.0,), 7.5)
    assert (moment.start_s, moment.end_s, moment.resolution_s) == (0.0, 7.5, 7.5)
    unknown = find_moment(np.array([0.2]), (0.0,), None)
    assert (unknown.start_s, unknown.end_s) == (0.0, 0.0)


def test_without_a_duration() -> None:
    assert find_moment(np.array([0.1, 0.4]), (0.0, 2.0), None).end_s == 3.0


@given(st.data())
def test_the_best_frame_lies_in_its_moment(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    gaps = data.draw(st.lists(st.floats(0.01, 100), min_size=count, max_size=count))
    times = tuple(np.cumsum(gaps).tolist())
    scores = data.draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count))
    duration = data.draw(st.none() | st.floats(0, 1000))
    moment = find_moment(np.array(scores), times, duration)
    assert 0 <= moment.start_s <= moment.best_frame_time_s <= moment.end_s
    # Of frames that differ by rounding alone, the first is the best.
    best = times.index(moment.best_frame_time_s)
    assert max(scores[:best], default=-2) < max(scores) - 1e-6 <= scores[best]
    assert moment.resolution_s > 0
