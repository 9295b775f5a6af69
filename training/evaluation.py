"""Evaluate a checkpoint in PyTorch, or a model while it trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from xclip_deploy.errors import InvalidArgumentError, SessionError
from xclip_deploy.runtime.datasets import Split
from xclip_deploy.runtime.evaluation import (
    Evaluation,
    EvaluationOptions,
    ModelIdentity,
    evaluate_matcher,
)
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
from xclip_deploy.training.datasets.frames import FrameSource, in_order
from xclip_deploy.training.model import XClip
from xclip_deploy.training.torch_matcher import TorchMatcher

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    path: Path,
    split: Split,
    options: EvaluationOptions,
    *,
    checkpoint_options: CheckpointOptions | None = None,
    session: SessionOptions,
) -> Evaluation:
    """Load a checkpoint and evaluate it on a split, in FP32.

    Args:
        path: A checkpoint of any kind that ``load_checkpoint`` reads.
        split: Videos and captions.
        options: Options of ``evaluate_matcher``.
        checkpoint_options: Settings that the weights do not tell.
        session: Where to run: device ``auto`` takes a GPU where PyTorch sees one, precision is
            ``auto`` or ``fp32``, and ``threads`` are PyTorch's while the evaluation runs.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        SessionError: ``cuda`` was asked for, and PyTorch sees no GPU.
        DatasetError, InvalidArgumentError, MissingExtraError: see ``evaluate_matcher``.
    """
    if session.precision not in ("auto", "fp32"):
        raise InvalidArgumentError(
            f"precision {session.precision!r}: a checkpoint is evaluated in fp32; for fp16 run: "
            f"xclip-deploy export {path}, and evaluate the bundle"
        )
    chosen = session.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise SessionError("device cuda was asked for, but this PyTorch sees no GPU")
    checkpoint = load_checkpoint(path, checkpoint_options or CheckpointOptions())
    for note in checkpoint.notes:
        logger.warning("%s: %s", path, note)
    identity = ModelIdentity("checkpoint", str(path), checkpoint.source_sha256, "fp32", chosen)
    matcher = TorchMatcher(checkpoint.build().to(chosen), max_batch=options.get("max_batch", 16))
    before = torch.get_num_threads()
    if session.threads is not None:
        torch.set_num_threads(session.threads)
    try:
        return evaluate_matcher(
            matcher,
            split,
            identity=identity,
            square_pixels=checkpoint.square_pixels,
            **options,
        )
    finally:
        torch.set_num_threads(before)


def validate(
    model: XClip, split: Split, source: FrameSource, *, frame_order: int = 0
) -> dict[str, Any]:
    """Measure a model while it trains; return metrics of both directions as plain dictionaries.

    ``source`` reads the frames, from its cache where it has one. The model keeps its mode.
    ``frame_order``: as in ``DataConfig``.
    Raises VideoError for a video that cannot be read any more.
    """
    frames = (
        in_order(source.read(video), frame_order, (number,))
        for number, video in enumerate(split.videos)
    )
    return evaluate_matcher(TorchMatcher(model), split, frames=frames).metrics.to_dict()
