"""Measuring a model while it trains."""

from __future__ import annotations

from typing import Any

from xclip_deploy.runtime.evaluation import evaluate_matcher
from xclip_deploy.training.datasets.frames import FrameSource
from xclip_deploy.training.datasets.split import Split
from xclip_deploy.training.model import XClip
from xclip_deploy.training.torch_matcher import TorchMatcher


def validate(model: XClip, split: Split, source: FrameSource) -> dict[str, Any]:
    """Retrieval metrics of a split, both directions, as plain dictionaries.

    Frames come from ``source`` and so, where it has one, from its cache. Leaves the model in
    the mode that it was in. Raises VideoError for a video that cannot be read any more.
    """
    frames = (source.read(video) for video in split.videos)
    return evaluate_matcher(TorchMatcher(model), split, frames=frames).metrics.to_dict()
