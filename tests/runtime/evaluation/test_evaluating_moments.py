"""Evaluations of moments, by rankers whose metrics are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy.errors import DatasetError, InvalidArgumentError
from xclip_deploy.runtime.datasets import SplitVideo
from xclip_deploy.runtime.datasets.moments import MomentQuery, MomentSplit
from xclip_deploy.runtime.evaluation.moments import Prediction, Ranker, evaluate_moments
from xclip_deploy.runtime.evaluation.moments.didemo import CANDIDATES
from xclip_deploy.runtime.progress import Progress


def split_of(dataset: str, *queries: tuple[str, tuple[tuple[float, float], ...]]) -> MomentSplit:
    videos = dict.fromkeys(video for video, _ in queries)
    return MomentSplit(
        f"{dataset}/test",
        dataset,
        tuple(SplitVideo(video, Path(video)) for video in videos),
        tuple(
            MomentQuery(n, f"text {n}", video, spans) for n, (video, spans) in enumerate(queries)
        ),
    )


class Oracle:
    """A ranker that knows the answers of a split, and puts ``before`` wrong ones first."""

    def __init__(self, split: MomentSplit, before: int = 0) -> None:
        self._queries = {query.text: query for query in split.queries}
        self._before = before

    def rank(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        wrong = [Prediction("elsewhere", n, n + 1, 9.0 - n) for n in range(self._before)]
        return [(wrong + self._right(text))[:k] for text in texts]

    def rank_within(
        self, texts: Sequence[str], video_ids: Sequence[str], k: int
    ) -> list[list[Prediction]]:
        for text, video_id in zip(texts, video_ids, strict=True):
            assert self._queries[text].video_id == video_id
        return [self._right(text)[:k] for text in texts]

    def _right(self, text: str) -> list[Prediction]:
        query = self._queries[text]
        return [Prediction(query.video_id, *query.spans[0], 0.0)]


class Same:
    """A ranker with one answer to everything."""

    def __init__(self, ranking: list[Prediction]) -> None:
        self._ranking = ranking

    def rank(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        return [self._ranking[:k] for _ in texts]

    def rank_within(
        self, texts: Sequence[str], video_ids: Sequence[str], k: int
    ) -> list[list[Prediction]]:
        assert len(texts) == len(video_ids)
        return self.rank(texts, k)


MANY = split_of("tvr", *((f"video {n % 7}", ((n, n + 5.5),)) for n in range(150)))


def test_an_oracle_is_perfect() -> None:
    seen: list[Progress] = []
    evaluation = evaluate_moments(Oracle(MANY), MANY, progress=seen.append)
    for recall in (evaluation.corpus, evaluation.videos, evaluation.within):
        assert set(recall.to_dict().values()) == {100.0}
    assert (evaluation.mean_iou, evaluation.boundary_error_s) == (100, 0)
    assert (evaluation.num_videos, len(evaluation.queries)) == (7, 150)
    assert [step.done for step in seen] == [64, 128, 150]
    assert evaluation.didemo is None


def test_what_stands_before_the_right_answer() -> None:
    evaluation = evaluate_moments(Oracle(MANY, before=4), MANY, k=10)
    assert evaluation.corpus.at == (1, 5, 10)  # more were not asked for
    assert evaluation.corpus.percent == ((0.0, 100.0, 100.0),) * 2
    assert evaluation.videos.percent == ((0.0, 100.0, 100.0),)  # four moments of one video
    assert evaluation.within.value(1, 0.7) == 100


def test_activitynet_has_its_thresholds() -> None:
    split = split_of("activitynet", ("a", ((0.0, 10.0),)))
    evaluation = evaluate_moments(Oracle(split), split)
    assert evaluation.within.thresholds == (0.3, 0.5, 0.7)
    assert evaluation.within.at == (1, 5)
    assert evaluation.corpus.thresholds == (0.5, 0.7)


def test_didemo_by_an_oracle_and_by_chance() -> None:
    moments = [(f"v{n}", ((n % 6 * 5.0, n % 6 * 5.0 + 5.0),) * 4) for n in range(60)]
    split = split_of("didemo", *moments)
    evaluation = evaluate_moments(Oracle(split), split)
    assert evaluation.didemo is not None
    assert evaluation.didemo_chance is not None
    assert evaluation.didemo.to_dict() == {
        "rank_at_1": 100.0,
        "rank_at_5": 100.0,
        "mean_iou": 100.0,
        "num_queries": 60,
    }
    assert evaluation.didemo_chance.rank_at_1 == pytest.approx(100 / len(CANDIDATES))


def test_the_result_is_json_and_a_table() -> None:
    evaluation = evaluate_moments(Same([]), MANY)
    assert evaluation.boundary_error_s == np.inf
    content = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert content["boundary_error_s"] is None
    assert content["VCMR"]["0.5-r1"] == content["SVMR"]["0.7-r100"] == content["VR"]["r5"] == 0
    assert repr(evaluation).startswith("MomentEvaluation(split='tvr/test', num_videos=7")
    assert evaluation._repr_html_().count("<tr>") == 1 + 5


def test_wrong_rankers_are_refused() -> None:
    class Long(Oracle):
        def rank(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
            return super().rank(texts, k + 1)

    class Short(Oracle):
        def rank(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
            return super().rank(texts[1:], k)

    cases: list[tuple[Ranker, str]] = [
        (Long(MANY, 30), "up to 11 moments"),
        (Short(MANY), "63 rankings"),
        (Same([Prediction("elsewhere", 0.0, 1.0, 0.0)]), "names other videos"),
    ]
    for ranker, expected in cases:
        with pytest.raises(InvalidArgumentError, match=expected):
            evaluate_moments(ranker, MANY, k=10)


def test_wrong_arguments() -> None:
    empty = MomentSplit("tvr/test", "tvr", (), ())
    with pytest.raises(DatasetError, match="holds no query"):
        evaluate_moments(Oracle(MANY), empty)
    wrong: Any = "tvr"
    with pytest.raises(InvalidArgumentError, match="expected a MomentSplit"):
        evaluate_moments(Oracle(MANY), wrong)
    for k in (0, -1, 1.5, 10**9):
        with pytest.raises(InvalidArgumentError, match="k is"):
            evaluate_moments(Oracle(MANY), MANY, k=k)  # type: ignore[arg-type]
