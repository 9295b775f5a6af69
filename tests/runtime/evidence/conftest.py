"""A gallery of real clips, and small scorers of any configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from xclip_deploy import Bundle, Retriever
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
from xclip_deploy.training.scorer import Scorer

DOG, FROG, WALK = "sam2_dog.mp4", "mdn_frog.webm", "intel_asl_walk.mkv"


@pytest.fixture(scope="session")
def filled(bundle: Bundle, clips: Path) -> Iterator[Retriever]:
    """Three real clips under ids of their own. Not to be changed."""
    with Retriever(bundle, device="cpu", threads=1) as retriever:
        retriever.add([clips / name for name in (DOG, FROG, WALK)], ids=["dog", "frog", "walk"])
        yield retriever


def small_config(**changes: Any) -> ModelConfig:
    """Dimensions 6, 4 words and 3 frames, so that thousands of scores take no time."""
    fields: dict[str, Any] = {
        "embed_dim": 6,
        "vision": VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        "text": TextConfig(width=64, layers=1, heads=1),
        "max_words": 4,
        "max_frames": 3,
    }
    return ModelConfig(**(fields | changes))


def small_scorer(seed: int = 0, noise: float = 0.3, **changes: Any) -> tuple[Scorer, ModelConfig]:
    """The PyTorch scorer in FP64, its matrices ``noise`` from the identity."""
    config = small_config(**changes)
    generator = torch.Generator().manual_seed(seed)
    scorer = Scorer(config)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return scorer.double(), config


@pytest.fixture(scope="session")
def make_scorer() -> Callable[..., tuple[Scorer, ModelConfig]]:
    """See :func:`small_scorer`."""
    return small_scorer
