"""Metrics of moments in seconds: over a corpus, within the right video, and of boundaries.

A prediction is right if its video is and its temporal IoU with the annotated moment is at least
a threshold. TVR (Lei et al., ECCV 2020) defines three tasks, of which each has its recall:

VCMR   moments of all videos are ranked; a right one is among the first k
VR     videos are ranked, each by its best moment; the right one is among the first k
SVMR   moments of the right video alone are ranked; a right one is among the first k

ActivityNet Captions' "R@n, IoU=m" is SVMR with thresholds 0.3, 0.5 and 0.7. Where at least four
annotators marked a moment (DiDeMo), a prediction must reach the threshold with two of them, as
TVR's authors count it. They compute in single precision; here an IoU that falls short of a
threshold by rounding alone counts as reaching it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets.moments import MomentQuery, Span
from xclip_deploy.runtime.evaluation.moments.predictions import Ranking, best_by_video

AT = (1, 5, 10, 100)
"""Numbers k of predictions, as TVR counts."""
THRESHOLDS = (0.5, 0.7)
"""IoU thresholds of TVR."""
ACTIVITYNET_AT = (1, 5)
ACTIVITYNET_THRESHOLDS = (0.3, 0.5, 0.7)

_MANY_ANNOTATORS = 4
_AGREEING = 2
_ROUNDING = 1e-9

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MomentRecall:
    """Recall in percent, by IoU threshold and number of predictions."""

    thresholds: tuple[float, ...]
    """IoU thresholds; empty for video retrieval, which has one row."""
    at: tuple[int, ...]
    percent: tuple[tuple[float, ...], ...]
    """One row for each threshold, one number for each of ``at``."""

    def value(self, k: int, threshold: float | None = None) -> float:
        """Return the recall at ``k``. ``threshold``: None for video retrieval."""
        row = 0 if threshold is None else self.thresholds.index(threshold)
        return self.percent[row][self.at.index(k)]

    def to_dict(self) -> dict[str, float]:
        """Convert for JSON, with TVR's keys: ``0.5-r1``, or ``r1`` without a threshold."""
        prefixes = [f"{threshold:g}-" for threshold in self.thresholds] or [""]
        return {
            f"{prefix}r{k}": value
            for prefix, row in zip(prefixes, self.percent, strict=True)
            for k, value in zip(self.at, row, strict=True)
        }


def temporal_iou(spans: Float64Array, truth: Span) -> Float64Array:
    """Return intersection over union of spans with one span, in seconds.

    ``spans``: float64 [n, 2], starts and ends. Returns float64 [n], 0 to 1. Two empty spans have
    an IoU of 0.
    """
    shared = np.minimum(spans[:, 1], truth[1]) - np.maximum(spans[:, 0], truth[0])
    # Where they are apart, this is more than their union; the IoU is 0 all the same.
    union = np.maximum(spans[:, 1], truth[1]) - np.minimum(spans[:, 0], truth[0])
    iou: Float64Array = np.divide(
        np.maximum(shared, 0), union, out=np.zeros(len(spans)), where=union > 0
    )
    return iou


def corpus_recall(
    queries: Sequence[MomentQuery],
    rankings: Sequence[Ranking],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    at: Sequence[int] = AT,
) -> MomentRecall:
    """Compute the recall of moments among all videos (VCMR).

    Raises InvalidArgumentError where there are not as many rankings as queries, at least one, or
    a prediction has no times.
    """
    return _recall(queries, rankings, lambda _query, ranking: ranking, thresholds, at)


def recall_within(
    queries: Sequence[MomentQuery],
    rankings: Sequence[Ranking],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    at: Sequence[int] = AT,
) -> MomentRecall:
    """Compute the recall of moments within the right video (SVMR).

    Predictions in other videos are passed over, so that a corpus' rankings may be given. Errors
    as :func:`corpus_recall`.
    """
    return _recall(queries, rankings, in_right_video, thresholds, at)


def video_recall(
    queries: Sequence[MomentQuery], rankings: Sequence[Ranking], *, at: Sequence[int] = AT
) -> MomentRecall:
    """Compute the recall of videos (VR), ranked by the best moment of each.

    A ranking of too few moments may name fewer videos than k; the others count as not found.
    Errors as :func:`corpus_recall`.
    """
    _check(queries, rankings)
    found = np.zeros((1, len(at)))
    for query, ranking in zip(queries, rankings, strict=True):
        videos = [best.video_id for best in best_by_video(ranking)]
        rank = videos.index(query.video_id) if query.video_id in videos else np.inf
        found[0] += rank < np.asarray(at)
    return _percent(found, (), at, len(queries))


def mean_iou(queries: Sequence[MomentQuery], rankings: Sequence[Ranking]) -> float:
    """Return the mean IoU of the first prediction within the right video, in percent.

    The best annotator counts where several marked the moment. A query without a prediction in
    the right video counts 0. Errors as :func:`corpus_recall`.
    """
    _check(queries, rankings)
    total = 0.0
    for query, ranking in zip(queries, rankings, strict=True):
        first = spans_of(in_right_video(query, ranking)[:1])
        if len(first):
            total += max(float(temporal_iou(first, span)[0]) for span in query.spans)
    return 100 * total / len(queries)


def boundary_error_s(
    queries: Sequence[MomentQuery], rankings: Sequence[Ranking], *, least_iou: float = 0.0
) -> float:
    """Return the median distance of predicted from annotated boundaries, in seconds.

    The first prediction within the right video counts, with its start and its end. Of several
    annotators, the nearest counts.

    Args:
        queries: The queries.
        rankings: For each query, predictions in any videos.
        least_iou: 0 counts every query, whether or not the right moment is found; one without a
            prediction in the right video counts as infinitely far. Above 0, only queries count
            whose prediction reaches this IoU.

    Returns:
        The lower median in seconds; infinite where no query counts.

    Raises:
        InvalidArgumentError: As :func:`corpus_recall`.
    """
    _check(queries, rankings)
    errors: list[float] = []
    for query, ranking in zip(queries, rankings, strict=True):
        first = spans_of(in_right_video(query, ranking)[:1])
        if not len(first):
            errors += [np.inf, np.inf] if least_iou == 0 else []
            continue
        iou = max(float(temporal_iou(first, span)[0]) for span in query.spans)
        if iou < least_iou - _ROUNDING:
            continue
        distances = np.abs(np.asarray(query.spans) - first)  # [annotators, 2]
        errors += distances[distances.sum(axis=1).argmin()].tolist()
    return float(np.quantile(errors, 0.5, method="lower")) if errors else np.inf


def in_right_video(query: MomentQuery, ranking: Ranking) -> Ranking:
    """Return the predictions in the video of the query, in their order."""
    return [found for found in ranking if found.video_id == query.video_id]


def spans_of(ranking: Ranking) -> Float64Array:
    """Return starts and ends of predictions, float64 [n, 2]. Raises InvalidArgumentError."""
    spans = np.array([found[1:3] for found in ranking], dtype=np.float64).reshape(-1, 2)
    wrong = np.flatnonzero(~(np.isfinite(spans).all(axis=1) & (spans[:, 0] <= spans[:, 1])))
    if wrong.size:
        start_s, end_s = spans[wrong[0]]
        raise InvalidArgumentError(
            f"a prediction runs from {start_s:g} to {end_s:g} s; expected an end not before its "
            "start"
        )
    return spans


def _recall(
    queries: Sequence[MomentQuery],
    rankings: Sequence[Ranking],
    choose: Callable[[MomentQuery, Ranking], Ranking],
    thresholds: Sequence[float],
    at: Sequence[int],
) -> MomentRecall:
    _check(queries, rankings)
    found = np.zeros((len(thresholds), len(at)))
    for query, ranking in zip(queries, rankings, strict=True):
        right = _right(query, choose(query, ranking)[: max(at)], thresholds)
        for column, k in enumerate(at):
            found[:, column] += right[:, :k].any(axis=1)
    return _percent(found, thresholds, at, len(queries))


def _right(query: MomentQuery, ranking: Ranking, thresholds: Sequence[float]) -> BoolArray:
    """Say for each threshold which predictions are right, [thresholds, n]."""
    spans = spans_of(ranking)
    in_video = np.array([found.video_id == query.video_id for found in ranking], dtype=bool)
    ious = np.stack([temporal_iou(spans, truth) for truth in query.spans])  # [annotators, n]
    needed = _AGREEING if len(query.spans) >= _MANY_ANNOTATORS else 1
    least = np.asarray(thresholds)[:, None, None] - _ROUNDING
    right: BoolArray = ((ious >= least).sum(axis=1) >= needed) & in_video
    return right


def _percent(
    found: Float64Array, thresholds: Sequence[float], at: Sequence[int], num_queries: int
) -> MomentRecall:
    percent = tuple(tuple(row) for row in (100 * found / num_queries).tolist())
    return MomentRecall(tuple(thresholds), tuple(at), percent)


def _check(queries: Sequence[MomentQuery], rankings: Sequence[Ranking]) -> None:
    if not queries or len(queries) != len(rankings):
        raise InvalidArgumentError(
            f"{len(rankings)} rankings for {len(queries)} queries; expected one each, at least one"
        )
