"""What passes and what does not, at the edges; on numbers made for it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy.export.verification.certificate import RunComparison, RunIdentity
from xclip_deploy.export.verification.differences import Differences
from xclip_deploy.export.verification.judging import judge
from xclip_deploy.export.verification.measuring import MeasuredRun, MeasuredRuns, OutputKey
from xclip_deploy.export.verification.runs import Run
from xclip_deploy.runtime.evaluation import Matcher
from xclip_deploy.runtime.manifest import Graph, Precision, Tolerance

SCALE = 10.0
TOLERANCE = Tolerance(
    feature=1e-2, cosine=0.99, score=0.1, outlier_factor=5, recall_points=2.0, top1_agreement=0.98
)
IDENTITY = RunIdentity(
    backend="onnxruntime",
    precision=Precision.FP16,
    device="cpu",
    artefacts={"x": "0" * 64},
    size_bytes=1,
)
RUN = Run(IDENTITY, cast("Matcher", None))
Matrix = npt.NDArray[np.float32]


def judged(
    reference: Matrix,
    found: Matrix,
    *,
    has_ground_truth: bool = True,
    features: tuple[Any, Any] | None = None,
) -> RunComparison:
    """The comparison of two score matrices, of as many texts as videos."""
    differences: dict[OutputKey, Differences] = {
        (Graph.SCORER, "logits"): Differences(are_vectors=False)
    }
    differences[Graph.SCORER, "logits"].add(reference, found)
    if features is not None:
        differences[Graph.VIDEO_ENCODER, "video_features"] = Differences(are_vectors=True)
        differences[Graph.VIDEO_ENCODER, "video_features"].add(*features)
    count = len(reference)
    # The first batch opens a session; of the scorer there is no second.
    seconds = {Graph.TEXT_ENCODER: [9.0, 0.3, 0.1, 0.2], Graph.SCORER: [5.0]}
    measured = MeasuredRun(RUN, differences, found, seconds=seconds)
    measurement = MeasuredRuns(
        reference=RUN,
        reference_seconds={Graph.TEXT_ENCODER: [8.0, 0.4, 0.4, 0.7], Graph.SCORER: [4.0]},
        reference_logits=reference,
        score_scale=SCALE,
        measured=(measured,),
        texts=("a text",) * count,
        video_ids=("a video",) * count,
        video_of_text=np.arange(count) if has_ground_truth else None,
        thumbnails=(),
        unreadable=(),
    )
    return judge(measurement, measured, TOLERANCE)[0]


def right_first(count: int, gap: float) -> Matrix:
    """Each text has its own video first, by ``gap`` logits; the others are far apart."""
    scores = np.random.default_rng(0).permuted(
        np.tile(np.arange(count) * -10.0, (count, 1)), axis=1
    )
    np.fill_diagonal(scores, scores.max(axis=1) + gap)
    return scores.astype(np.float32)


def test_durations_leave_out_the_first_batch() -> None:
    scores = right_first(4, 1.0)
    (duration,) = judged(scores, scores).durations
    assert (duration.graph, duration.num_batches) == (Graph.TEXT_ENCODER, 3)
    assert (duration.median_s, duration.reference_s, duration.speedup) == (0.2, 0.4, 2.0)


def with_wrong_first(scores: Matrix, texts: int) -> Matrix:
    """The right answer of some texts falls below the next one, by little."""
    changed: Matrix = scores.copy()
    for text in range(texts):
        order = np.argsort(-scores[text])
        changed[text, order[0]] = scores[text, order[1]] - 0.01
    return changed


@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False)])
def test_the_rms_of_scores(factor: float, passed: bool) -> None:
    scores = right_first(20, gap=50.0)
    comparison = judged(scores, scores + np.float32(factor * TOLERANCE.score * SCALE))
    assert comparison.passed is passed
    if not passed:
        assert comparison.failures == ("scorer logits: RMS error 1, allowed 1",)


@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False)])
def test_one_score_may_be_further_off(factor: float, passed: bool) -> None:
    scores = right_first(20, gap=50.0)
    found = scores.copy()
    found[3, 3] += factor * TOLERANCE.outlier_factor * TOLERANCE.score * SCALE
    assert judged(scores, found).passed is passed


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (0.0099, None),
        (0.0101, "video_encoder video_features: error 0.01, allowed 0.01"),
        (np.nan, "video_encoder video_features: 1 elements are NaN or infinite"),
    ],
)
def test_one_element_of_a_feature(change: float, failure: str | None) -> None:
    reference = np.eye(4)
    found = reference.copy()
    found[1, 2] += change
    scores = right_first(20, gap=50.0)
    comparison = judged(scores, scores, features=(reference, found))
    assert comparison.failures == (() if failure is None else (failure,))


def test_a_vector_that_turns_by_little_in_every_element() -> None:
    reference = np.zeros((1, 512))
    reference[0, 0] = 1
    found = reference + 0.0099
    scores = right_first(20, gap=50.0)
    (failure,) = judged(scores, scores, features=(reference, found)).failures
    cosine = 1.0099 / np.sqrt(1.0099**2 + 511 * 0.0099**2)
    assert failure == f"video_encoder video_features: cosine {cosine:.7f}, required 0.9900000"


@pytest.mark.parametrize(
    ("count", "changed", "passed"),
    [(10, 1, True), (10, 2, False), (100, 2, True), (100, 3, False)],
)
def test_recall_and_first_place(count: int, changed: int, passed: bool) -> None:
    """One query's worth always passes; beyond that, what the tolerance says."""
    scores = right_first(count, gap=0.1)  # near ties: no rank flip is held against it
    comparison = judged(scores, with_wrong_first(scores, changed))
    assert comparison.ranking is not None
    assert comparison.ranking.flips == 0
    assert comparison.ranking.near_tie_flips == changed
    recall = comparison.recalls[0]
    assert (recall.direction, recall.k) == ("text_to_video", 1)
    assert recall.reference - recall.found == pytest.approx(100 * changed / count)
    assert recall.allowed_points == max(2.0, 100 / count)
    assert comparison.passed is passed
    if not passed:
        assert any("text to video R@1" in failure for failure in comparison.failures)
        assert any("top-1 agreement" in failure for failure in comparison.failures)


def test_without_ground_truth_near_ties_pass_whatever_they_change() -> None:
    scores = right_first(20, gap=0.1)
    comparison = judged(scores, with_wrong_first(scores, 20), has_ground_truth=False)
    assert comparison.passed
    assert comparison.recalls == ()
    assert comparison.ranking is not None
    assert comparison.ranking.top1_agreement == 0.0


@pytest.mark.parametrize(("changed", "passed"), [(2, True), (3, False)])
def test_flips_beyond_near_ties(changed: int, passed: bool) -> None:
    scores = right_first(100, gap=2.5)  # twice the tolerance is 2 logits
    comparison = judged(scores, with_wrong_first(scores, changed), has_ground_truth=False)
    assert comparison.ranking is not None
    assert comparison.ranking.texts_flipped == comparison.ranking.flips == changed
    assert comparison.ranking.largest_flipped_gap == pytest.approx(2.5)
    assert comparison.passed is passed
    if not passed:
        assert comparison.failures == (
            "ranking: 3 texts, allowed 2, flip videos more than 2 logits apart, up to 2.5",
        )
