"""Overlapping windows by the whole encoder of a model with mean pooling, held against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.indexing.reuse import FrameReuse, MeanPooling, Window, pools_the_mean
from xclip_deploy.runtime.model_config import (
    ModelConfig,
    PatchEmbedding,
    TemporalHead,
    TextConfig,
    VisionConfig,
)
from xclip_deploy.training.model import XClip

FRAMES, SIZE = 4, 16
Pictures = npt.NDArray[np.uint8]


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "embed_dim": 24,
        "vision": VisionConfig(image_size=SIZE, patch_size=8, width=16, layers=2, heads=2),
        "text": TextConfig(width=16, layers=1, heads=2),
        "max_frames": FRAMES,
    }
    return ModelConfig(**fields | changes)


class Encoder:
    """The model's own encoder, which counts the videos that it sees."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = XClip(config()).eval()
        self.num_videos = 0

    @torch.no_grad()
    def __call__(self, videos: Sequence[Pictures]) -> VideoFeatures:
        self.num_videos += len(videos)
        counts = np.array([len(video) for video in videos], np.int32)
        frames = np.zeros((len(videos), FRAMES, SIZE, SIZE, 3), np.uint8)
        for row, video in zip(frames, videos, strict=True):
            row[: len(video)] = video
        found = self.model.video_encoder(torch.from_numpy(frames), torch.from_numpy(counts))
        return VideoFeatures(found[0].numpy(), found[1].numpy(), counts)


@pytest.fixture
def pictures() -> Pictures:
    return np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)


def same(found: VideoFeatures, expected: VideoFeatures) -> None:
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=0, atol=2e-6)


def test_windows_get_the_features_of_windows(pictures: Pictures) -> None:
    encoder = Encoder()
    reuse = FrameReuse(MeanPooling(encoder, FRAMES), FRAMES)
    starts = range(0, 36, 2)
    windows = [Window(pictures[s : s + 4], tuple(range(s, s + 4))) for s in starts]
    for part in (windows[:5], windows[5:6], windows[6:]):
        found = reuse.encode(part)
        same(found, Encoder()([window.frames for window in part]))
    assert reuse.num_encoded == 38, "each frame once"
    # One video more tells what padding looks like.
    assert encoder.num_videos == 1 + 3 + 1 + 6


def test_short_windows_and_whole_videos(pictures: Pictures) -> None:
    reuse = FrameReuse(MeanPooling(Encoder(), FRAMES), FRAMES)
    windows = [
        Window(pictures[:2], (0, 1)),
        Window(pictures[:2]),  # another file, whose frames have no names
        Window(pictures[1:2], (1,)),
        Window(pictures[5:8]),
    ]
    same(reuse.encode(windows), Encoder()([window.frames for window in windows]))
    assert reuse.num_encoded == 2 + 2 + 3


def test_equal_numbers_of_two_videos_are_two_frames(pictures: Pictures) -> None:
    reuse = FrameReuse(MeanPooling(Encoder(), FRAMES), FRAMES)
    windows = [Window(pictures[n : n + 1], ((n, 0),)) for n in range(3)]
    same(reuse.encode(windows), Encoder()([window.frames for window in windows]))


def test_memory_holds_the_last_windows_alone(pictures: Pictures) -> None:
    reuse = FrameReuse(MeanPooling(Encoder(), FRAMES), FRAMES)
    for start in range(0, 36, 2):
        reuse.encode([Window(pictures[start : start + 4], tuple(range(start, start + 4)))])
        assert len(reuse._known) <= 4


def test_models_that_mix_frames_are_left_alone() -> None:
    assert pools_the_mean(config())
    head = {"temporal_layers": 1, "temporal_heads": 2, "temporal_positions": FRAMES}
    mixing = config(temporal_head=TemporalHead.TRANSFORMER, **head)
    assert not pools_the_mean(mixing)
    assert not pools_the_mean(config(temporal_head=TemporalHead.LSTM))
    assert not pools_the_mean(config(patch_embedding=PatchEmbedding.CONV_3D))
