"""DiDeMo's metrics, by hand; and chance, which follows from annotations alone."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets.moments.didemo import read_didemo_moments
from xclip_deploy.runtime.evaluation.moments.didemo import (
    CANDIDATES,
    Chunks,
    candidates_by_chunk,
    chunk_iou,
    chunks_of,
    didemo_chance,
    didemo_metrics,
)
from xclip_deploy.runtime.evaluation.moments.predictions import Prediction

REAL_TEST_SET = os.environ.get("XCLIP_DIDEMO_TEST_DATA")
marked_lists = st.lists(st.sampled_from(CANDIDATES), min_size=1, max_size=6)


def ranking_with(*first: Chunks) -> list[Chunks]:
    """Rank some candidates first, and the others in their usual order."""
    return [*first, *(other for other in CANDIDATES if other not in first)]


def test_there_are_21_candidates() -> None:
    assert len(set(CANDIDATES)) == 21
    assert (0, 5) in CANDIDATES


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 2), (2, 2), 1 / 2),  # chunks are inclusive: two against one
        ((0, 0), (1, 1), 0.0),
        ((0, 5), (0, 5), 1.0),
        ((0, 2), (2, 4), 1 / 5),
        ((0, 0), (5, 5), 0.0),
    ],
)
def test_iou_counts_chunks(a: Chunks, b: Chunks, expected: float) -> None:
    assert chunk_iou(a, b) == chunk_iou(b, a) == expected


def test_the_best_three_annotators_count() -> None:
    """The fourth annotator, who is far off, changes nothing."""
    ranking = ranking_with((0, 0), (0, 1), (1, 1))
    agree = didemo_metrics([ranking], [[(0, 0), (0, 0), (0, 0), (5, 5)]])
    assert (agree.rank_at_1, agree.rank_at_5, agree.mean_iou) == (100, 100, 100)
    # The best ranks are 1, 1 and 2, with a mean above 1; the best IoUs are 1, 1 and 1/2.
    two = didemo_metrics([ranking], [[(0, 0), (0, 0), (0, 1), (5, 5)]])
    assert (two.rank_at_1, two.rank_at_5) == (0, 100)
    assert two.mean_iou == pytest.approx(100 * 2.5 / 3)


def test_a_mean_rank_of_just_five_counts() -> None:
    order = ranking_with(*CANDIDATES)
    for ranks, expected in (((1, 2, 12), 100), ((1, 2, 13), 0), ((5, 5, 5), 100)):
        marked = [order[rank - 1] for rank in ranks]
        assert didemo_metrics([order], [marked]).rank_at_5 == expected


def test_two_annotators_are_averaged_over_two() -> None:
    metrics = didemo_metrics([ranking_with((3, 3), (4, 4))], [[(3, 3), (4, 4)]])
    assert (metrics.rank_at_1, metrics.mean_iou) == (0, 50)


def test_several_queries_are_averaged() -> None:
    right, wrong = ranking_with((2, 3)), ranking_with((5, 5))
    metrics = didemo_metrics([right, wrong], [[(2, 3)] * 4] * 2)
    assert (metrics.rank_at_1, metrics.mean_iou, metrics.num_queries) == (50, 50, 2)


@pytest.mark.parametrize(
    ("rankings", "times", "expected"),
    [
        ([], [], "expected one each"),
        ([list(CANDIDATES)], [], "expected one each"),
        ([list(CANDIDATES)[:-1]], [[(0, 0)]], "a ranking of 20 moments"),
        ([[(0, 0)] * 21], [[(0, 0)]], "each of the 21 candidates once"),
        ([list(CANDIDATES)], [[]], "marked moments are"),
        ([list(CANDIDATES)], [[(1, 0)]], "marked moments are"),
        ([list(CANDIDATES)], [[(0, 6)]], "marked moments are"),
    ],
)
def test_what_is_not_didemo_is_refused(
    rankings: list[list[Chunks]], times: list[list[Chunks]], expected: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=expected):
        didemo_metrics(rankings, times)


def test_chance_where_all_agree() -> None:
    """One moment among 21: first with 1/21, among the first five with 5/21."""
    chance = didemo_chance([[(0, 0)] * 4])
    assert chance.rank_at_1 == pytest.approx(100 / 21)
    assert chance.rank_at_5 == pytest.approx(500 / 21)
    # Six candidates hold the first chunk; they have 1 to 6 chunks.
    assert chance.mean_iou == pytest.approx(100 * sum(1 / n for n in range(1, 7)) / 21)


def test_chance_at_one_needs_three_who_agree() -> None:
    """A share of 63 in 80 gives the 3.75 % of the published test set."""
    agreeing, split = [(1, 1), (1, 1), (1, 1), (2, 2)], [(1, 1), (1, 1), (2, 2), (2, 2)]
    chance = didemo_chance([agreeing] * 63 + [split] * 17)
    assert chance.rank_at_1 == pytest.approx(3.75)


@pytest.mark.parametrize(
    "marked",
    [
        [(0, 0)],
        [(0, 0), (3, 4)],
        [(0, 0), (0, 0), (1, 1), (1, 1)],
        [(0, 0), (0, 0), (0, 0), (1, 1)],
        [(0, 0), (0, 0), (1, 1), (4, 5)],
        [(0, 0), (0, 1), (1, 1)],
    ],
)
def test_chance_equals_every_ranking_counted(marked: list[Chunks]) -> None:
    moments = sorted(set(marked))
    at_1 = at_5 = total = 0
    for places in permutations(range(1, 22), len(moments)):
        rank = dict(zip(moments, places, strict=True))
        mean = np.mean(np.sort([rank[moment] for moment in marked])[:3])
        at_1, at_5, total = at_1 + (mean <= 1), at_5 + (mean <= 5), total + 1
    chance = didemo_chance([marked])
    assert chance.rank_at_1 == pytest.approx(100 * at_1 / total)
    assert chance.rank_at_5 == pytest.approx(100 * at_5 / total)


def test_chance_is_what_random_rankings_reach() -> None:
    random = np.random.default_rng(0)
    times = [
        [CANDIDATES[n] for n in random.choice(21, 5)] if query % 2 else [(query % 6, 5)] * 4
        for query in range(4000)
    ]
    rankings = [[CANDIDATES[n] for n in random.permutation(21)] for _ in times]
    measured, expected = didemo_metrics(rankings, times), didemo_chance(times)
    assert measured.rank_at_1 == pytest.approx(expected.rank_at_1, abs=1)
    assert measured.rank_at_5 == pytest.approx(expected.rank_at_5, abs=2)
    assert measured.mean_iou == pytest.approx(expected.mean_iou, abs=1.5)


@given(marked_lists, st.permutations(CANDIDATES))
def test_metrics_keep_within_bounds(marked: list[Chunks], ranking: list[Chunks]) -> None:
    metrics = didemo_metrics([ranking], [marked])
    assert metrics.rank_at_1 <= metrics.rank_at_5
    assert 0 <= metrics.mean_iou <= 100
    assert metrics.rank_at_1 == 0 or metrics.mean_iou == pytest.approx(100)
    chance = didemo_chance([marked])
    assert 0 <= chance.rank_at_1 <= chance.rank_at_5 <= 100


@pytest.mark.skipif(
    REAL_TEST_SET is None, reason="XCLIP_DIDEMO_TEST_DATA names no test_data.json of DiDeMo"
)
def test_chance_on_the_published_test_set() -> None:
    assert REAL_TEST_SET is not None
    moments = read_didemo_moments(Path(REAL_TEST_SET), "test")
    chance = didemo_chance([[chunks_of(span) for span in q.spans] for q in moments.queries])
    found = (chance.rank_at_1, chance.rank_at_5, chance.mean_iou)
    assert found == pytest.approx((3.75, 22.50, 22.64), abs=0.01)


def test_candidates_follow_the_windows() -> None:
    windows = [((5, 10), 3.0), ((10, 15), 2.0), ((0, 5), 1.0), ((15, 20), 0.0)]
    ranking = candidates_by_chunk([Prediction("a", *span, score) for span, score in windows])
    assert sorted(ranking) == sorted(CANDIDATES)
    # Means: 3; 2.5 of both; 2 of chunk 2, of 0 to 1 and of 0 to 2, the shorter first.
    assert ranking[:5] == [(1, 1), (1, 2), (2, 2), (0, 1), (0, 2)]
    # Nothing is known of the chunks 4 and 5.
    assert set(ranking[-11:]) == {c for c in CANDIDATES if c[1] >= 4}


def test_candidates_without_predictions_keep_their_order() -> None:
    assert candidates_by_chunk([]) == sorted(CANDIDATES, key=lambda c: (c[1] - c[0], c[0]))


@pytest.mark.parametrize("chunks", CANDIDATES)
def test_chunks_and_seconds(chunks: Chunks) -> None:
    assert chunks_of((chunks[0] * 5.0, (chunks[1] + 1) * 5.0)) == chunks
