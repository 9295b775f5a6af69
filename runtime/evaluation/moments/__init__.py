"""Evaluation of moments: which seconds of which video a text finds.

evaluating    measure anything that ranks moments: ``evaluate_moments``
metrics       recall over a corpus and within a video, in seconds
didemo        DiDeMo's metrics in chunks, and those of chance
predictions   predictions, as files that other projects' evaluators read
results       the result: ``MomentEvaluation``
"""

from __future__ import annotations

from xclip_deploy.runtime.evaluation.moments.didemo import (
    DidemoMetrics,
    didemo_chance,
    didemo_metrics,
)
from xclip_deploy.runtime.evaluation.moments.evaluating import Ranker, evaluate_moments
from xclip_deploy.runtime.evaluation.moments.metrics import (
    MomentRecall,
    boundary_error_s,
    corpus_recall,
    mean_iou,
    recall_within,
    temporal_iou,
    video_recall,
)
from xclip_deploy.runtime.evaluation.moments.predictions import (
    Prediction,
    Ranking,
    read_predictions,
    write_predictions,
)
from xclip_deploy.runtime.evaluation.moments.results import MomentEvaluation

__all__ = [
    "DidemoMetrics",
    "MomentEvaluation",
    "MomentRecall",
    "Prediction",
    "Ranker",
    "Ranking",
    "boundary_error_s",
    "corpus_recall",
    "didemo_chance",
    "didemo_metrics",
    "evaluate_moments",
    "mean_iou",
    "read_predictions",
    "recall_within",
    "temporal_iou",
    "video_recall",
    "write_predictions",
]
