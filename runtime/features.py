"""Embeddings and scores, as they pass between encoders, gallery and scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.presentation import brief

FloatArray = npt.NDArray[np.floating[Any]]


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


def check_finite(name: str, array: FloatArray) -> None:
    """Refuse NaN and infinity, which would poison every ranking. Raises InvalidArgumentError."""
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"{name} holds NaN or infinity")
