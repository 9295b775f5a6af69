"""Leaving out hits that are nearly the same as a better one."""

from __future__ import annotations

import numpy as np

from xclip_deploy.runtime.features import VideoFeatures

NEAR_IDENTICAL = 0.995
"""Cosine that ``deduplicate=True`` stands for."""
_FP16_SLACK = 1e-3
"""What FP16 can take from the cosine of a vector with itself."""


def distinct(
    features: VideoFeatures, threshold: float, depth: int
) -> tuple[list[int], dict[int, list[int]]]:
    """Which of ranked videos to keep, at most ``depth``, and which others each stands for.

    A video is left out where every frame embedding reaches the cosine ``threshold`` with that at
    the same place of a kept video before it, and their numbers of frames differ by one at most.
    Embeddings of whole videos would not do: a mean over frames hardly knows their order, nor
    the one frame in which two videos differ.
    """
    if threshold == 1:
        threshold -= _FP16_SLACK
    frames = features.frame_features.astype(np.float32)  # [V, F, D]
    frames /= np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-12)
    places = np.arange(frames.shape[1])
    kept: list[int] = []
    kept_frames = np.empty((min(depth, len(frames)), *frames.shape[1:]), np.float32)
    dropped: dict[int, list[int]] = {}
    for n, (own, count) in enumerate(zip(frames, features.num_frames, strict=True)):
        counts = features.num_frames[kept]
        cosines = np.einsum("kfd,fd->kf", kept_frames[: len(kept)], own)
        is_padding = places >= np.minimum(counts, count)[:, np.newaxis]
        nearness = np.where(is_padding, 1, cosines).min(axis=1, initial=1)
        nearness[abs(counts - count) > 1] = -1
        if len(kept) and nearness.max() >= threshold:
            dropped.setdefault(kept[int(nearness.argmax())], []).append(n)
        elif len(kept) < depth:
            kept_frames[len(kept)] = own
            kept.append(n)
        else:
            break
    return kept, dropped
