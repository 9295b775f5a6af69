"""The best rows of the best videos, suppression and order, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.search import suppression
from xclip_deploy.runtime.search.grouping import (
    best_with_few_each,
    ranks_of_groups,
    ranks_within,
)
from xclip_deploy.runtime.search.suppression import (
    first_kept,
    kept_first,
    suppressed,
    temporal_iou,
)

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 4)), max_size=40)
"""Video and score of each row; scores tie often."""


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([number for number, _ in rows], np.int64)
    return np.array([score for _, score in rows], np.float32), numbers


@given(ROWS)
def test_ranks_are_those_of_a_loop(rows: list[tuple[int, int]]) -> None:
    _, numbers = arrays(rows)
    listed = numbers.tolist()
    assert ranks_within(numbers).tolist() == [
        listed[:n].count(number) for n, number in enumerate(listed)
    ]
    videos = list(dict.fromkeys(listed))
    assert ranks_of_groups(numbers).tolist() == [videos.index(number) for number in listed]


@given(ROWS, st.integers(1, 4))
def test_the_best_rows_with_few_of_each_video(rows: list[tuple[int, int]], few: int) -> None:
    scores, numbers = arrays(rows)
    order = sorted(range(len(rows)), key=lambda n: (-scores[n], n))
    capped: list[int] = []
    taken: dict[int, int] = {}
    for n in order:
        number = int(numbers[n])
        taken[number] = taken.get(number, 0) + 1
        if taken[number] <= few:
            capped.append(n)
    assert best_with_few_each(scores, numbers, 7, few).tolist() == sorted(
        [*capped, *(n for n in order if n not in capped)][:7], key=order.index
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0, 8), 1), ((4, 12), 4 / 12), ((8, 16), 0), ((20, 21), 0), ((2, 4), 0.25), ((3, 3), 0)],
)
def test_temporal_iou(other: tuple[float, float], expected: float) -> None:
    found = temporal_iou(*(np.array([float(time_s)]) for time_s in (0, 8, *other)))
    assert found[0, 0] == pytest.approx(expected)


def test_iou_of_nothing_and_of_unknown_times() -> None:
    three, unknown = np.array([3.0]), np.array([np.nan])
    assert temporal_iou(three, three, three, three).tolist() == [[0]]
    assert np.isnan(temporal_iou(three, three + 8, unknown, unknown))[0, 0]


WINDOWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=30)


@given(WINDOWS, st.sampled_from([0.1, 0.5, 0.7, None]), st.integers(0, 30))
def test_suppression_is_greedy_and_needs_no_later_moments(
    windows: list[tuple[int, int]], iou: float | None, prefix: int
) -> None:
    numbers = np.array([video for video, _ in windows], np.int64)
    starts = np.array([2.0 * place for _, place in windows])
    found = suppressed(numbers, starts, starts + 8, iou)
    kept: list[int] = []
    for n in range(len(windows)):
        overlaps = [
            temporal_iou(starts[[m]], starts[[m]] + 8, starts[[n]], starts[[n]] + 8)[0, 0]
            for m in kept
            if numbers[m] == numbers[n]
        ]
        is_out = iou is not None and any(overlap > iou + 1e-9 for overlap in overlaps)
        assert bool(found[n]) == is_out
        if not is_out:
            kept.append(n)
    for number in set(numbers.tolist()):
        own = np.flatnonzero(numbers == number)
        begin = starts[own].tolist()
        first = first_kept(begin, [start + 8 for start in begin], iou, 3)
        assert own[first].tolist() == [n for n in kept if numbers[n] == number][:3]
    part = suppressed(numbers[:prefix], starts[:prefix], starts[:prefix] + 8, iou)
    assert part.tolist() == found[:prefix].tolist()


def test_suppression_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    numbers, starts = rng.integers(0, 3, 300), rng.uniform(0, 200, 300)
    whole = suppressed(numbers, starts, starts + 8, 0.4)
    assert 0 < whole.sum() < 300
    monkeypatch.setattr(suppression, "_AT_ONCE", 7)
    assert suppressed(numbers, starts, starts + 8, 0.4).tolist() == whole.tolist()


@given(st.lists(st.booleans(), max_size=50), st.integers(1, 9), st.integers(0, 5))
def test_suppressed_moments_follow_in_blocks(is_out: list[bool], block: int, blocks: int) -> None:
    order = kept_first(np.array(is_out, np.bool_), block).tolist()
    assert sorted(order) == list(range(len(is_out)))
    for start in range(0, len(is_out), block):
        part = order[start : start + block]
        assert sorted(part) == list(range(start, min(start + block, len(is_out))))
        assert part == sorted(part, key=lambda n: (is_out[n], n))
    short = is_out[: block * blocks]
    assert kept_first(np.array(short, np.bool_), block).tolist() == order[: len(short)]


def test_unknown_times_are_never_suppressed() -> None:
    unknown = np.full(3, np.nan)
    assert not suppressed(np.zeros(3, np.int64), unknown, unknown, 0.5).any()
