from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.metrics import (
    RetrievalMetrics,
    dual_softmax,
    dual_softmax_metrics,
    retrieval_metrics,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def authors() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))
    return content


def golden_case(name: str) -> tuple[Floats, Integers]:
    with np.load(GOLDEN / "metrics.npz") as arrays:
        if name == "single":
            return arrays["single"], np.arange(200)
        counts = np.diff(arrays["cut_off_points"], prepend=0)
        return arrays["multi"], np.repeat(np.arange(len(counts)), counts)


def as_authors(metrics: RetrievalMetrics) -> dict[str, float]:
    return {
        "R1": metrics.recall_at_1,
        "R5": metrics.recall_at_5,
        "R10": metrics.recall_at_10,
        "MR": metrics.median_rank,
        "MeanR": metrics.mean_rank,
    }


# The authors' numbers


@pytest.mark.parametrize("block_elements", [1, 333, 1 << 22])
@pytest.mark.parametrize("name", ["single", "multi"])
def test_the_authors_metrics_exactly(
    name: str, block_elements: int, authors: dict[str, Any]
) -> None:
    similarity, video_of_caption = golden_case(name)
    result = retrieval_metrics(similarity, video_of_caption, block_elements=block_elements)
    for direction in ("text_to_video", "video_to_text"):
        found = as_authors(getattr(result, direction))
        assert found == {key: authors[name][direction][key] for key in found}
    assert result.text_to_video.num_queries == similarity.shape[0]
    assert result.video_to_text.num_queries == similarity.shape[1]


def test_the_order_of_captions_does_not_matter(authors: dict[str, Any]) -> None:
    similarity, video_of_caption = golden_case("multi")
    order = np.random.default_rng(0).permutation(len(similarity))
    result = retrieval_metrics(similarity[order], video_of_caption[order])
    assert result == retrieval_metrics(similarity, video_of_caption)


def test_golden_data_holds_no_tie_with_a_right_answer() -> None:
    """What the module says of ties is the authors' code, not these numbers."""
    for name in ("single", "multi"):
        similarity, video_of_caption = golden_case(name)
        right = similarity[np.arange(len(similarity)), video_of_caption]
        assert ((similarity == right[:, None]).sum(axis=1) == 1).all()


# Any matrix, against sorting


def by_sorting(rows: Floats, answers: Integers) -> list[int]:
    """Every position of the right answer's score in each sorted row."""
    positions = []
    for row, answer in zip(rows, answers, strict=True):
        best_first = sorted(row, reverse=True)
        positions += [n for n, score in enumerate(best_first) if score == row[answer]]
    return positions


def naive_single(rows: Floats, answers: Integers) -> RetrievalMetrics:
    positions = by_sorting(rows, answers)
    at_1, at_5, at_10 = (sum(n < k for n in positions) * 100 / len(positions) for k in (1, 5, 10))
    return RetrievalMetrics(
        at_1,
        at_5,
        at_10,
        median_rank=float(np.median(positions)) + 1,
        mean_rank=float(np.mean(positions)) + 1,
        num_queries=len(rows),
    )


def naive_several(rows: Floats, answers: Integers) -> RetrievalMetrics:
    ranks = np.array(
        [
            np.argsort(-row, kind="stable").tolist().index(answer)
            for row, answer in zip(rows, answers, strict=True)
        ]
    )
    hits = [np.float32((ranks < k).sum() * 100) for k in (1, 5, 10)]
    at_1, at_5, at_10 = (float(hit / np.float32(len(ranks))) for hit in hits)
    return RetrievalMetrics(
        at_1,
        at_5,
        at_10,
        median_rank=float(sorted(ranks)[(len(ranks) - 1) // 2] + 1),
        mean_rank=float(np.mean(ranks + 1)),
        num_queries=len(rows),
    )


@st.composite
def retrievals(draw: st.DrawFn) -> tuple[Floats, Integers]:
    """Few values, so that there are ties; captions in any order."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    videos = [video for video, count in enumerate(counts) for _ in range(count)]
    video_of_caption = np.array(draw(st.permutations(videos)))
    values = st.sampled_from([-2.5, -1.0, 0.0, 1e-30, 1.0, 3.0])
    shape = (len(video_of_caption), len(counts))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    matrix = draw(numpy_strategies.arrays(np.float64, shape, elements=values))
    return matrix.astype(dtype), video_of_caption


@given(retrievals(), st.integers(1, 40))
def test_ranks_are_those_of_sorting(case: tuple[Floats, Integers], block_elements: int) -> None:
    similarity, video_of_caption = case
    num_videos = similarity.shape[1]
    result = retrieval_metrics(similarity, video_of_caption, block_elements=block_elements)
    best = np.stack([similarity[video_of_caption == v].max(axis=0) for v in range(num_videos)])
    assert result.video_to_text == naive_single(best.T, np.arange(num_videos))
    naive = naive_several if len(similarity) > num_videos else naive_single
    assert result.text_to_video == naive(similarity, video_of_caption)


def test_a_model_that_knows_nothing_has_the_recall_of_chance() -> None:
    result = retrieval_metrics(np.zeros((20, 20), np.float32), np.arange(20))
    for metrics in (result.text_to_video, result.video_to_text):
        assert metrics == RetrievalMetrics(5.0, 25.0, 50.0, 10.5, 10.5, 20)
    several = np.repeat(np.arange(20), 2)
    result = retrieval_metrics(np.zeros((40, 20), np.float32), several)
    assert result.text_to_video == RetrievalMetrics(5.0, 25.0, 50.0, 10.0, 10.5, 40)
    assert result.video_to_text.recall_at_1 == 5.0


def test_a_model_that_knows_all() -> None:
    video_of_caption = np.array([0, 0, 1, 2, 2, 2])
    result = retrieval_metrics(np.eye(3)[video_of_caption], video_of_caption)
    assert result.text_to_video == RetrievalMetrics(100, 100, 100, 1, 1, 6)
    assert result.video_to_text == RetrievalMetrics(100, 100, 100, 1, 1, 3)


def test_as_plain_numbers() -> None:
    result = retrieval_metrics(np.eye(2), np.arange(2))
    assert json.loads(json.dumps(result.to_dict()))["video_to_text"] == {
        "recall_at_1": 100.0,
        "recall_at_5": 100.0,
        "recall_at_10": 100.0,
        "median_rank": 1.0,
        "mean_rank": 1.0,
        "num_queries": 2,
    }
    assert result.to_dict()["text_to_video"] == result.text_to_video.to_dict()


# What cannot be ranked


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_similarities_that_are_no_numbers_are_refused(value: float) -> None:
    similarity = np.eye(3)
    similarity[2, 0] = value
    for metrics in (retrieval_metrics, dual_softmax_metrics):
        with pytest.raises(InvalidArgumentError, match="similarity holds NaN or infinity"):
            metrics(similarity, np.arange(3), block_elements=1)
    with pytest.raises(InvalidArgumentError, match="similarity holds NaN or infinity"):
        dual_softmax(similarity, "texts")


@pytest.mark.parametrize(
    ("similarity", "video_of_caption", "message"),
    [
        (np.eye(3, dtype=np.int64), np.arange(3), "similarity is int64"),
        (np.zeros((0, 3)), np.arange(0), r"similarity is float64 \[0, 3\]"),
        (np.zeros(3), np.arange(3), r"similarity is float64 \[3\]"),
        (np.eye(3), np.arange(2), r"video_of_caption is int64 \[2\], expected integers \[3\]"),
        (np.eye(3), np.eye(3)[0], "video_of_caption is float64"),
        (np.eye(3), np.array([0, 1, 3]), "runs from 0 to 3, expected columns of similarity, 0 to"),
        (np.eye(3), np.array([-1, 1, 2]), "runs from -1 to 2"),
        (np.eye(3), np.array([0, 1, 1]), "1 of 3 videos have no caption, first video 2"),
    ],
)
def test_wrong_arguments(similarity: Floats, video_of_caption: Integers, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        retrieval_metrics(similarity, video_of_caption)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="block_elements 0: expected at least 1"):
        retrieval_metrics(np.eye(3), np.arange(3), block_elements=0)


# Dual softmax


def test_dual_softmax_by_hand() -> None:
    similarity = np.log(np.array([[2.0, 3.0], [6.0, 3.0]]))
    by_text = similarity * [[2 / 8, 3 / 6], [6 / 8, 3 / 6]]
    by_video = similarity * [[2 / 5, 3 / 5], [6 / 9, 3 / 9]]
    assert dual_softmax(similarity, "texts") == pytest.approx(by_text)
    assert dual_softmax(similarity, "videos") == pytest.approx(by_video)
    warmer = similarity * [[4 / 40, 9 / 18], [36 / 40, 9 / 18]]
    assert dual_softmax(similarity, "texts", temperature=0.5) == pytest.approx(warmer)


def test_dual_softmax_holds_back_a_hub() -> None:
    # Video 0 is close to every text; text 1 is closer to it than to its own.
    similarity = np.array([[9.0, 2.0], [6.0, 5.0]])
    plain = retrieval_metrics(similarity, np.arange(2))
    rescored = dual_softmax_metrics(similarity, np.arange(2))
    assert plain.text_to_video.recall_at_1 == 50
    assert rescored.text_to_video.recall_at_1 == 100
    assert retrieval_metrics(similarity, np.arange(2)) == plain, "the argument is left alone"


@pytest.mark.parametrize("block_elements", [1, 1000, 1 << 22])
@pytest.mark.parametrize("name", ["single", "multi"])
def test_dual_softmax_metrics_are_those_of_the_rescored_matrices(
    name: str, block_elements: int
) -> None:
    similarity, video_of_caption = golden_case(name)
    found = dual_softmax_metrics(
        similarity, video_of_caption, temperature=0.3, block_elements=block_elements
    )
    by_text = dual_softmax(similarity, "texts", temperature=0.3)
    by_video = dual_softmax(similarity, "videos", temperature=0.3)
    expected = retrieval_metrics(by_text, video_of_caption).text_to_video
    assert found.text_to_video == expected
    assert found.video_to_text == retrieval_metrics(by_video, video_of_caption).video_to_text


def test_dual_softmax_of_large_logits_neither_overflows_nor_ties() -> None:
    similarity = np.array([[900.0, 400.0], [500.0, 300.0]], dtype=np.float32)
    rescored = dual_softmax(similarity, "texts")
    assert np.isfinite(rescored).all()
    assert (rescored > 0).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_wrong_temperature(temperature: float) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a number above 0"):
        dual_softmax_metrics(np.eye(3), np.arange(3), temperature=temperature)


def test_wrong_queries() -> None:
    with pytest.raises(InvalidArgumentError, match="queries 'frames': expected texts or videos"):
        dual_softmax(np.eye(3), "frames")  # type: ignore[arg-type]
