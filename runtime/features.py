"""Embeddings and scores, as they pass between encoders, gallery and scorer.

The scorer compares every word of a text with every frame of a video. With T texts, V videos,
W words and F frames it holds several arrays of T x V x W x F numbers. So this module also says
how many texts and videos are scored at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """[T, D], unit length."""
    word_features: FloatArray
    """[T, W, D], unit length, padding too."""
    num_words: npt.NDArray[np.int32]
    """[T]: tokens that are not padding, start and end token included."""

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
    """[V, D], unit length."""
    frame_features: FloatArray
    """[V, F, D], unit length, padding too."""
    num_frames: npt.NDArray[np.int32]
    """[V]: frames that are not padding."""

    def __len__(self) -> int:
        return len(self.video_features)

    def __getitem__(self, index: slice) -> VideoFeatures:
        return VideoFeatures(
            self.video_features[index], self.frame_features[index], self.num_frames[index]
        )

    def __repr__(self) -> str:
        return brief(self, **vars(self))

    @classmethod
    def concatenate(cls, parts: Sequence[VideoFeatures]) -> VideoFeatures:
        """Join along V; at least one part."""
        return cls(
            np.concatenate([part.video_features for part in parts]),
            np.concatenate([part.frame_features for part in parts]),
            np.concatenate([part.num_frames for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """Similarities of T texts to V videos."""

    logits: npt.NDArray[np.float32]
    """[T, V]: exp(logit_scale) times the mean of the grains."""
    grains: dict[str, npt.NDArray[np.float32]]
    """Grain name to its similarity [T, V], for the grains that the model has."""

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
