"""Metrics of moments, held against cases counted by hand and against properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets.moments import MomentQuery
from xclip_deploy.runtime.evaluation.moments.metrics import (
    boundary_error_s,
    corpus_recall,
    mean_iou,
    recall_within,
    temporal_iou,
    video_recall,
)
from xclip_deploy.runtime.evaluation.moments.predictions import Prediction

times = st.integers(0, 1000).map(lambda tenths: tenths / 10)
lengths = st.integers(1, 500).map(lambda tenths: tenths / 10)
spans = st.tuples(times, lengths).map(lambda span: (span[0], span[0] + span[1]))
videos = st.sampled_from(["a", "b", "c"])
predictions = st.builds(
    lambda video, span, score: Prediction(video, span[0], span[1], score),
    videos,
    spans,
    st.floats(-10, 10),
)
rankings = st.lists(predictions, max_size=12)
queries = st.builds(
    lambda video, marked: MomentQuery(0, "a text", video, tuple(marked)),
    videos,
    st.lists(spans, min_size=1, max_size=5),
)


def query(video: str, *marked: tuple[float, float], query_id: int = 0) -> MomentQuery:
    return MomentQuery(query_id, "a text", video, marked)


def found(*moments: tuple[str, float, float]) -> list[Prediction]:
    return [Prediction(*moment, -float(rank)) for rank, moment in enumerate(moments)]


@pytest.mark.parametrize(
    ("span", "truth", "expected"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 1 / 3),
        ((2, 4), (0, 8), 0.25),
        ((0, 5), (5, 10), 0.0),
        ((0, 1), (90, 100), 0.0),
        ((3, 3), (0, 6), 0.0),
        ((3, 3), (3, 3), 0.0),
    ],
)
def test_iou_by_hand(
    span: tuple[float, float], truth: tuple[float, float], expected: float
) -> None:
    assert temporal_iou(np.array([span], dtype=float), truth).tolist() == [expected]


@given(spans, spans, st.floats(0.1, 10), st.integers(0, 1000))
def test_iou_is_symmetric_and_keeps_with_unit_and_origin(
    a: tuple[float, float], b: tuple[float, float], unit: float, origin: int
) -> None:
    def iou(one: tuple[float, float], other: tuple[float, float]) -> float:
        return float(temporal_iou(np.array([one]), other)[0])

    value = iou(a, b)
    assert 0 <= value <= 1
    assert value == iou(b, a)
    assert (value == 1) == (a == b)
    moved = [(start * unit + origin, end * unit + origin) for start, end in (a, b)]
    assert iou(*moved) == pytest.approx(value, abs=1e-9)


def test_a_corpus_by_hand() -> None:
    """Three queries: found second, found only at 0.5, and never."""
    asked = [query("a", (0, 10)), query("a", (20, 30)), query("b", (0, 10))]
    rankings = [
        found(("b", 0, 10), ("a", 0, 10)),
        found(("a", 20, 25), ("a", 0, 10)),  # an IoU of just 0.5
        found(("a", 0, 10), ("b", 6, 16), ("c", 0, 10)),  # 4 of 16
    ]
    recall = corpus_recall(asked, rankings, at=(1, 2, 3))
    third = 100 / 3
    expected: object = (
        (pytest.approx(third), pytest.approx(2 * third), pytest.approx(2 * third)),
        (0.0, pytest.approx(third), pytest.approx(third)),
    )
    assert recall.percent == expected
    assert recall.value(2, 0.7) == pytest.approx(third)
    assert list(recall.to_dict()) == ["0.5-r1", "0.5-r2", "0.5-r3", "0.7-r1", "0.7-r2", "0.7-r3"]
    # Within the right video, the first query's second prediction is its first.
    within: object = ((pytest.approx(2 * third),), (pytest.approx(third),))
    assert recall_within(asked, rankings, at=(1,)).percent == within
    # The third query's video is the second of its ranking.
    assert video_recall(asked, rankings, at=(1, 2)).to_dict() == {
        "r1": pytest.approx(third),
        "r2": 100.0,
    }
    assert mean_iou(asked, rankings) == pytest.approx(100 * (1 + 0.5 + 0.25) / 3)
    # 0 and 0, 0 and 5, 6 and 6; the lower of the middle two.
    assert boundary_error_s(asked, rankings) == 0


def test_a_video_counts_once_however_many_of_its_moments_are_found() -> None:
    ranking = found(("a", 0, 1), ("a", 2, 3), ("a", 4, 5), ("b", 0, 1))
    assert video_recall([query("b", (0, 1))], [ranking], at=(1, 2)).percent == ((0.0, 100.0),)


def test_four_annotators_need_two_that_agree() -> None:
    ranking = found(("a", 0, 10))
    once = query("a", (0, 10), (20, 30), (20, 30), (20, 30))
    twice = query("a", (0, 10), (0, 9), (20, 30), (20, 30))
    few = query("a", (0, 10), (20, 30), (20, 30))
    assert corpus_recall([once], [ranking], at=(1,)).value(1, 0.5) == 0
    assert corpus_recall([twice], [ranking], at=(1,)).value(1, 0.5) == 100
    assert corpus_recall([few], [ranking], at=(1,)).value(1, 0.5) == 100


def test_rounding_does_not_lose_a_moment_on_the_threshold() -> None:
    # 0.7 / 1.0, of which the computed value may fall short.
    for shift in np.arange(0, 50, 0.1):
        asked = query("a", (float(shift), float(shift + 1)))
        ranking = [Prediction("a", float(shift + 0.3), float(shift + 1), 0.0)]
        assert corpus_recall([asked], [ranking], at=(1,)).value(1, 0.7) == 100


def test_nothing_found() -> None:
    asked = [query("a", (0, 10))]
    assert set(corpus_recall(asked, [[]]).to_dict().values()) == {0.0}
    assert set(video_recall(asked, [[]]).to_dict().values()) == {0.0}
    assert mean_iou(asked, [[]]) == 0
    assert boundary_error_s(asked, [[]]) == np.inf


def test_boundary_errors_by_hand() -> None:
    asked = [query("a", (10, 16)), query("a", (40, 46), (30, 37))]
    rankings = [found(("b", 10, 16), ("a", 11, 18)), found(("a", 31, 40), ("a", 40, 46))]
    # 1 and 2 s; then 1 and 3 s from the nearer annotator.
    assert boundary_error_s(asked, rankings) == 1
    assert boundary_error_s(asked[1:], rankings[1:]) == 1
    assert boundary_error_s([asked[0]] * 2, [rankings[0], []]) == 2
    # Only what is found: 5 of 8 s are shared in the first, 6 of 10 s in the second.
    assert boundary_error_s(asked, [rankings[0], []], least_iou=0.5) == 1
    assert boundary_error_s(asked, rankings, least_iou=0.62) == 1
    assert boundary_error_s([asked[0], asked[0]], [found(("a", 16, 99)), []]) == 83
    assert boundary_error_s(asked, [found(("a", 16, 99)), []], least_iou=0.5) == np.inf


@given(st.lists(st.tuples(queries, rankings), min_size=1, max_size=6))
def test_recalls_grow_with_k_and_fall_with_the_threshold(
    cases: list[tuple[MomentQuery, list[Prediction]]],
) -> None:
    asked, ranked = [case[0] for case in cases], [case[1] for case in cases]
    moments = np.array(corpus_recall(asked, ranked).percent)
    within = np.array(recall_within(asked, ranked).percent)
    of_videos = np.array(video_recall(asked, ranked).percent)
    for recall in (moments, within, of_videos):
        assert ((recall >= 0) & (recall <= 100)).all()
        assert (np.diff(recall, axis=1) >= 0).all()
    assert (moments[0] >= moments[1]).all()
    # Knowing the video helps, and a right moment lies in the right video.
    assert (within >= moments).all()
    assert (of_videos[0] >= moments[0]).all()


@given(queries, rankings)
def test_a_perfect_prediction_in_front_makes_everything_perfect(
    asked: MomentQuery, ranking: list[Prediction]
) -> None:
    span = asked.spans[0]
    perfect = MomentQuery(0, "a text", asked.video_id, (span,))
    ranked = [[Prediction(asked.video_id, *span, 99.0), *ranking]]
    assert set(corpus_recall([perfect], ranked).to_dict().values()) == {100.0}
    assert mean_iou([perfect], ranked) == 100
    assert boundary_error_s([perfect], ranked) == 0


@pytest.mark.parametrize("bad", [(2.0, 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_impossible_predictions_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(InvalidArgumentError, match="a prediction runs from"):
        corpus_recall([query("a", (0, 1))], [[Prediction("a", *bad, 0.0)]])


@pytest.mark.parametrize("metric", [corpus_recall, recall_within, video_recall, mean_iou])
def test_lengths_must_fit(metric: object) -> None:
    assert callable(metric)
    nothing: list[list[Prediction]] = []
    for asked, ranked in (([], nothing), ([query("a", (0, 1))], nothing)):
        with pytest.raises(InvalidArgumentError, match="expected one each"):
            metric(asked, ranked)
