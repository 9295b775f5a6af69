"""Splits whose videos are painted in one colour each, and a model that sees colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.tokenizer import Tokenizer

# Of words whose embeddings the small checkpoint has kept.
CAPTIONS = (
    "video broadcaster comparing cheese",
    "psycho readings territories",
    "teacher saturdays pools hospitalized cleaning",
    "foundation suspense bombed rookie",
    "managing nyc canucks",
    "toilet deadlines magnitude",
)


FILES = (
    "conditions/burst.mp4",
    "edge_cases/torchcodec_test_non_zero_start.mp4",
    "conditions/dog_square.mp4",
    "edge_cases/torchcodec_h265.mp4",
)


COUNTS = (1, 2, 1, 2)


class Colours:
    """A model without learning: a caption names a colour, a video is its mean colour."""

    NAMES = ("red", "green", "blue")

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.tokenizer = Tokenizer.default()
        self.texts: list[str] = []
        self.batches: list[list[int]] = []

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        self.texts += texts
        sentences = np.eye(3, dtype=np.float32)[[self.NAMES.index(text) for text in texts]]
        return TextFeatures(sentences, sentences[:, None], np.ones(len(texts), np.int32))

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        self.batches.append([len(frames) for frames in videos])
        means = np.stack([frames.mean(axis=(0, 1, 2), dtype=np.float32) for frames in videos])
        lengths = np.array(self.batches[-1], np.int32)
        return VideoFeatures(means, means[:, None], lengths)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        return Scores(texts.sentence_features @ videos.video_features.T, {})


def painted(*colours: str, frames: int = 2) -> list[npt.NDArray[np.uint8]]:
    shape = (frames, 8, 8, 3)
    rows = 200 * np.eye(3, dtype=np.uint8)
    return [np.broadcast_to(rows[Colours.NAMES.index(name)], shape) for name in colours]


def painted_split(*captions: Sequence[str]) -> Split:
    """One video for every list of captions; the files are not there."""
    counts = [len(texts) for texts in captions]
    return Split(
        "painted/test",
        tuple(SplitVideo(f"v{n}", Path(f"v{n}.mp4")) for n in range(len(captions))),
        tuple(text for texts in captions for text in texts),
        np.repeat(np.arange(len(captions)), counts),
    )
