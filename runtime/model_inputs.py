"""Checks of what a model gets: token ids, frames and features of its own dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arguments import as_array, as_instance, shown
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.model_config import ModelConfig


def check_token_ids(token_ids: npt.NDArray[np.integer[Any]], config: ModelConfig) -> None:
    """Refuse anything but integers [T, W] of the vocabulary. Raises InvalidArgumentError."""
    words, vocab_size = config.max_words, config.text.vocab_size
    as_array("token_ids", token_ids, np.integer, (None, words), f"integers [texts, {words}]")
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise InvalidArgumentError(
            f"token_ids holds ids from {token_ids.min()} to {token_ids.max()}, "
            f"expected 0 to {vocab_size - 1}"
        )


def check_frames(frames: npt.NDArray[np.uint8], config: ModelConfig, *, per_video: bool) -> None:
    """Refuse anything but uint8 [V, F, S, S, 3], or [N, S, S, 3] where not ``per_video``.

    Raises InvalidArgumentError.
    """
    size = config.vision.image_size
    axes, name = ((config.max_frames,), "videos") if per_video else ((), "frames")
    shape = (*axes, size, size, 3)
    expected = f"uint8 [{', '.join(map(str, (name, *shape)))}]"
    as_array("frames", frames, np.uint8, (None, *shape), expected)


def check_counts(num_frames: npt.NDArray[np.integer[Any]], count: int, config: ModelConfig) -> None:
    """Refuse anything but a number of valid frames for each of ``count`` videos.

    Raises InvalidArgumentError.
    """
    most = config.max_frames
    as_array("num_frames", num_frames, np.integer, (count,), f"integers [{count}], one a video")
    if num_frames.size and not 1 <= num_frames.min() <= num_frames.max() <= most:
        raise InvalidArgumentError(
            f"num_frames runs from {num_frames.min()} to {num_frames.max()}, expected 1 to {most}"
        )


def count_frames(
    videos: Sequence[npt.NDArray[np.uint8]], config: ModelConfig
) -> npt.NDArray[np.int32]:
    """Check videos given by their valid frames, and count those: int32 [V].

    Raises InvalidArgumentError.
    """
    size, most = config.vision.image_size, config.max_frames
    for video in videos:
        is_fit = isinstance(video, np.ndarray) and video.shape[1:] == (size, size, 3)
        if not is_fit or video.dtype != np.uint8 or not 1 <= len(video) <= most:
            raise InvalidArgumentError(
                f"a video is {shown(video)}, expected uint8 [1 to {most}, {size}, {size}, 3]"
            )
    return np.array([len(video) for video in videos], dtype=np.int32)


def check_features(texts: object, videos: object, config: ModelConfig) -> None:
    """Refuse features of another kind or of another model's dimensions.

    Raises InvalidArgumentError.
    """
    as_instance("texts", texts, TextFeatures, "TextFeatures")
    as_instance("videos", videos, VideoFeatures, "VideoFeatures")
    dim, words, frames = config.embed_dim, config.max_words, config.max_frames
    for features, count, shapes in (
        (texts, "texts", {"sentence_features": (dim,), "word_features": (words, dim)}),
        (videos, "videos", {"video_features": (dim,), "frame_features": (frames, dim)}),
    ):
        for name, shape in shapes.items():
            expected = f"decimal numbers [{', '.join(map(str, (count, *shape)))}]"
            as_array(name, getattr(features, name), np.floating, (None, *shape), expected)
