"""Judge differences by tolerances, and make the records of a certificate."""

from __future__ import annotations

import math
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt

from xclip_deploy.export.verification.certificate import (
    Duration,
    RankingRecord,
    RecallRecord,
    RunComparison,
    TensorRecord,
)
from xclip_deploy.export.verification.differences import Differences
from xclip_deploy.export.verification.measuring import MeasuredRun, MeasuredRuns, OutputKey
from xclip_deploy.export.verification.rankings import RankComparison, compare_rankings
from xclip_deploy.runtime.manifest import Graph, Tolerance
from xclip_deploy.runtime.metrics import RetrievalResult, retrieval_metrics

Direction = Literal["text_to_video", "video_to_text"]
_DIRECTIONS: tuple[Direction, ...] = ("text_to_video", "video_to_text")
_RECALLS: tuple[Literal[1, 5, 10], ...] = (1, 5, 10)


def judge(
    measurement: MeasuredRuns, measured: MeasuredRun, tolerance: Tolerance
) -> tuple[RunComparison, RankComparison | None]:
    """Return one run's records, and its ranking in full for a report.

    The ranking is None where the run broke off or a score is NaN or infinite.
    """
    scale = measurement.score_scale
    tensors = tuple(
        _tensor(key, differences, tolerance, scale)
        for key, differences in measured.differences.items()
    )
    failures = [_tensor_failure(record) for record in tensors if not record.passed]
    ranks = ranking = None
    recalls: tuple[RecallRecord, ...] = ()
    if measured.error is not None:
        failures.insert(0, f"broke off: {measured.error}")
    elif measured.logits is not None and np.isfinite(measured.logits).all():
        # Each of two scores may be off by the tolerance.
        tie_gap = 2 * tolerance.score * scale
        ranks = compare_rankings(measurement.reference_logits, measured.logits, tie_gap)
        ranking = _ranking(measurement, ranks, tie_gap, tolerance)
        failures += _ranking_failures(ranking)
        recalls = _recalls(measurement, measured.logits, tolerance)
        failures += [_recall_failure(record) for record in recalls if not record.passed]
    comparison = RunComparison(
        run=measured.run.identity,
        tolerance=tolerance,
        tensors=tensors,
        ranking=ranking,
        recalls=recalls,
        durations=_durations(measurement, measured),
        failures=tuple(failures),
    )
    return comparison, ranks


def _durations(measurement: MeasuredRuns, measured: MeasuredRun) -> tuple[Duration, ...]:
    return tuple(
        Duration(
            graph=graph,
            median_s=median(seconds[1:]),
            reference_s=median(measurement.reference_seconds[graph][1:]),
            num_batches=len(seconds) - 1,
        )
        for graph, seconds in measured.seconds.items()
        if len(seconds) > 1
    )


def _tensor(
    key: OutputKey, differences: Differences, tolerance: Tolerance, score_scale: float
) -> TensorRecord:
    graph, name = key
    error, rms, cosine = differences.max_abs_error, differences.rms_error, differences.min_cosine
    passed = differences.num_not_finite == 0 and error is not None and rms is not None
    allowed_rms = least = None
    if graph is Graph.SCORER:
        allowed_rms = tolerance.score * (score_scale if name == "logits" else 1.0)
        allowed = tolerance.outlier_factor * allowed_rms
        passed = passed and rms is not None and rms <= allowed_rms
    else:
        allowed, least = tolerance.feature, tolerance.cosine
        passed = passed and cosine is not None and cosine >= least
    return TensorRecord(
        graph=graph,
        tensor=name,
        min_cosine=cosine,
        mean_cosine=differences.mean_cosine,
        least_cosine=least,
        max_abs_error=error,
        allowed_error=allowed,
        rms_error=rms,
        allowed_rms=allowed_rms,
        num_not_finite=differences.num_not_finite,
        passed=passed and error is not None and error <= allowed,
    )


def _tensor_failure(record: TensorRecord) -> str:
    name = f"{record.graph.value} {record.tensor}"
    if record.num_not_finite or record.max_abs_error is None or record.rms_error is None:
        return f"{name}: {record.num_not_finite:,} elements are NaN or infinite"
    if record.max_abs_error > record.allowed_error:
        return f"{name}: error {record.max_abs_error:.2g}, allowed {record.allowed_error:.2g}"
    if record.allowed_rms is not None:
        return f"{name}: RMS error {record.rms_error:.2g}, allowed {record.allowed_rms:.2g}"
    return f"{name}: cosine {record.min_cosine:.7f}, required {record.least_cosine:.7f}"


def _ranking(
    measurement: MeasuredRuns, ranks: RankComparison, tie_gap: float, tolerance: Tolerance
) -> RankingRecord:
    top1 = ranks.top_agreement[1]
    assert top1 is not None
    num_texts = len(measurement.texts)
    # With few texts, one is more than the allowed share: one may always differ.
    may_differ = max(1, math.floor((1 - tolerance.top1_agreement) * num_texts + 1e-9))
    required = None
    passed = ranks.texts_flipped <= may_differ
    if measurement.video_of_text is not None:
        required = 1 - may_differ / num_texts
        passed = passed and top1 >= required - 1e-9
    return RankingRecord(
        top1_agreement=top1,
        top5_agreement=ranks.top_agreement[5],
        top10_agreement=ranks.top_agreement[10],
        flips=ranks.flips,
        near_tie_flips=ranks.near_tie_flips,
        texts_flipped=ranks.texts_flipped,
        texts_changed=ranks.texts_changed,
        allowed_flipped=may_differ,
        largest_flipped_gap=ranks.largest_flipped_gap,
        tie_gap=tie_gap,
        required_top1=required,
        passed=passed,
    )


def _ranking_failures(record: RankingRecord) -> list[str]:
    failures = []
    if record.texts_flipped > record.allowed_flipped:
        failures.append(
            f"ranking: {record.texts_flipped} texts, allowed {record.allowed_flipped}, flip videos "
            f"more than {record.tie_gap:.2g} logits apart, up to {record.largest_flipped_gap:.2g}"
        )
    if record.required_top1 is not None and record.top1_agreement < record.required_top1 - 1e-9:
        failures.append(
            f"ranking: top-1 agreement {record.top1_agreement:.1%}, "
            f"required {record.required_top1:.1%}"
        )
    return failures


def _recalls(
    measurement: MeasuredRuns, logits: npt.NDArray[np.float32], tolerance: Tolerance
) -> tuple[RecallRecord, ...]:
    if measurement.video_of_text is None:
        return ()
    expected = retrieval_metrics(measurement.reference_logits, measurement.video_of_text)
    found = retrieval_metrics(logits, measurement.video_of_text)
    return tuple(
        _recall(direction, k, expected, found, tolerance)
        for direction in _DIRECTIONS
        for k in _RECALLS
    )


def _recall(
    direction: Direction,
    k: Literal[1, 5, 10],
    expected: RetrievalResult,
    found: RetrievalResult,
    tolerance: Tolerance,
) -> RecallRecord:
    before, after = getattr(expected, direction), getattr(found, direction)
    values = [getattr(metrics, f"recall_at_{k}") for metrics in (before, after)]
    allowed = max(tolerance.recall_points, 100 / before.num_queries)
    return RecallRecord(
        direction=direction,
        k=k,
        reference=values[0],
        found=values[1],
        allowed_points=allowed,
        num_queries=before.num_queries,
        # Some splits give recalls in single precision.
        passed=abs(values[1] - values[0]) <= allowed + 1e-4,
    )


def _recall_failure(record: RecallRecord) -> str:
    direction = record.direction.replace("_", " ")
    return (
        f"{direction} R@{record.k}: {record.found:.1f} %, reference {record.reference:.1f} %, "
        f"allowed difference {record.allowed_points:.2g} points"
    )
