"""Embeddings and scores, as they pass between encoders, gallery and scorer.

The scorer compares every word of a text with every frame of a video. It holds several arrays
of T x V x W x F numbers, for T texts, V videos, W words and F frames. This module therefore
also bounds how many texts and videos are scored at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import FloatArray
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.presentation import brief

SCORER_ELEMENTS = 1 << 22
"""Word-frame similarities scored at once: 16 MiB in each of the scorer's FP32 arrays."""
_TEXTS_AT_ONCE = 64
"""Texts whose word embeddings are in memory at once: 64 x 32 x 512 FP32 numbers are 4 MiB."""


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Embeddings of T texts."""

    sentence_features: FloatArray
    """Embedding of each text, [T, D], of unit length."""
    word_features: FloatArray
    """Embedding of each token, [T, W, D], of unit length, padding too."""
    num_words: npt.NDArray[np.int32]
    """Tokens of each text without padding, [T]; start and end token count."""

    def __len__(self) -> int:
        return len(self.sentence_features)

    def __getitem__(self, index: slice) -> TextFeatures:
        return TextFeatures(
            self.sentence_features[index], self.word_features[index], self.num_words[index]
        )

    def __repr__(self) -> str:
        return brief(self, **vars(self))


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """Embeddings of V videos."""

    video_features: FloatArray
    """Embedding of each video, [V, D], of unit length."""
    frame_features: FloatArray
    """Embedding of each frame, [V, F, D], of unit length, padding too."""
    num_frames: npt.NDArray[np.int32]
    """Frames of each video without padding, [V]."""

    def __len__(self) -> int:
        return len(self.video_features)

    def __getitem__(
        self, index: slice | npt.NDArray[np.integer[Any]] | Sequence[int]
    ) -> VideoFeatures:
        """Return some of the videos: a slice as views, rows by their numbers as copies."""
        return VideoFeatures(
            self.video_features[index], self.frame_features[index], self.num_frames[index]
        )

    def __repr__(self) -> str:
        return brief(self, **vars(self))

    @classmethod
    def concatenate(cls, parts: Sequence[VideoFeatures]) -> VideoFeatures:
        """Join at least one part along V."""
        return cls(
            np.concatenate([part.video_features for part in parts]),
            np.concatenate([part.frame_features for part in parts]),
            np.concatenate([part.num_frames for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """Similarities of T texts to V videos."""

    logits: npt.NDArray[np.float32]
    """Scores [T, V]: exp(logit_scale) times the mean of the grains."""
    grains: dict[str, npt.NDArray[np.float32]]
    """Similarities [T, V] of each grain that the model has, by its name."""

    def __repr__(self) -> str:
        return brief(self, logits=self.logits, grains=list(self.grains))


def texts_at_once(config: ModelConfig, elements: int = SCORER_ELEMENTS) -> int:
    """Return how many texts to encode and score at once: 64 unless ``elements`` allow fewer."""
    return min(_TEXTS_AT_ONCE, max(1, elements // (config.max_words * config.max_frames)))


def videos_at_once(config: ModelConfig, num_texts: int, elements: int = SCORER_ELEMENTS) -> int:
    """Return how many videos to score at once against ``num_texts`` texts, at least 1.

    Neither the scorer's arrays nor the videos' frame embeddings then exceed ``elements`` numbers.
    """
    similarities = num_texts * config.max_words * config.max_frames
    return max(1, elements // max(similarities, config.max_frames * config.embed_dim))
