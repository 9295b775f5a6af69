"""Small models with random weights, and a whole run of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_splits import CAPTIONS, COUNTS, FILES, Colours
from tiny_runs import configured, write_dataset

from xclip_deploy import (
    Bundle,
    train,
)
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead, TextConfig, VisionConfig
from xclip_deploy.training import trainer
from xclip_deploy.training.model import XClip

MakeModel = Callable[..., XClip]


def small_config(**changes: Any) -> ModelConfig:
    """A configuration of a few thousand weights; ``changes`` override its fields."""
    fields: dict[str, Any] = {
        "embed_dim": 64,
        "vision": VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        "text": TextConfig(width=64, layers=1, heads=1, vocab_size=600),
        "max_words": 10,
        "max_frames": 5,
    }
    fields |= changes
    if fields.get("temporal_head") is TemporalHead.TRANSFORMER:
        fields |= {"temporal_layers": 2, "temporal_heads": 1, "temporal_positions": 20}
    return ModelConfig(**fields)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Make a small model; every weight random, X-CLIP's matrices too."""

    def make(**changes: Any) -> XClip:
        torch.manual_seed(1)
        model = XClip(small_config(**changes)).eval()
        with torch.no_grad():
            for name, parameter in model.scorer.named_parameters():
                if name != "logit_scale":
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [4, 10], frames [3, 5, 32, 32, 3] and their numbers [3]."""
    random = np.random.default_rng(2)
    token_ids = np.zeros((4, 10), np.int64)
    for row, count in zip(token_ids, (10, 5, 3, 2), strict=True):
        row[: count - 1] = random.integers(1, 598, count - 1)
        row[count - 1] = 599
    frames = random.integers(0, 256, (3, 5, 32, 32, 3), dtype=np.uint8)
    return torch.from_numpy(token_ids), torch.from_numpy(frames), torch.tensor([5, 3, 1])


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten tiny videos with captions. Not to be changed."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run. Not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    reports: list[trainer.StepReport] = []
    result = train(configured(dataset), run, on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 13))
    assert {report.total_steps for report in reports} == {12}
    assert result.steps == 12
    assert result.best_recall is not None
    return run


@pytest.fixture(scope="module")
def split(clips: Path) -> Split:
    """Four videos; two of them with two captions."""
    videos = tuple(SplitVideo(Path(file).stem, clips / file) for file in FILES)
    return Split("clips/test", videos, CAPTIONS, np.repeat(np.arange(4), COUNTS))


@pytest.fixture
def colours(bundle: Bundle) -> Colours:
    return Colours(bundle.manifest.model)
