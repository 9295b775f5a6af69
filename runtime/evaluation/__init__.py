"""Retrieval metrics of a model on a split; needs no PyTorch.

evaluating   evaluate anything that encodes and scores: ``evaluate_matcher``
bundles      evaluate a bundle in any session: ``evaluate_bundle``, ``evaluate_deployed``
results      the result: ``Evaluation``
"""

from __future__ import annotations

from xclip_deploy.runtime.evaluation.bundles import evaluate_bundle, evaluate_deployed
from xclip_deploy.runtime.evaluation.evaluating import (
    EvaluationOptions,
    FramesOrError,
    Matcher,
    evaluate_matcher,
    read_split,
    similarity_matrix,
)
from xclip_deploy.runtime.evaluation.results import Evaluation, ModelIdentity, VideoProblem

__all__ = [
    "Evaluation",
    "EvaluationOptions",
    "FramesOrError",
    "Matcher",
    "ModelIdentity",
    "VideoProblem",
    "evaluate_bundle",
    "evaluate_deployed",
    "evaluate_matcher",
    "read_split",
    "similarity_matrix",
]
