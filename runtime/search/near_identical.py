"""Removal of hits that are nearly identical to a better one."""

from __future__ import annotations

import numpy as np

from xclip_deploy.runtime.features import VideoFeatures

NEAR_IDENTICAL = 0.995
"""Cosine threshold of ``deduplicate=True``."""
_FP16_SLACK = 1e-3
"""Largest loss, in FP16, of the cosine of a vector with itself."""


def distinct(
    features: VideoFeatures, threshold: float, depth: int
) -> tuple[list[int], dict[int, list[int]]]:
    """Choose at most ``depth`` of ranked videos; map each to the near-identical ones it replaces.

    A video is left out if a kept video before it has frame embeddings with at least the cosine
    ``threshold`` at every place. Their numbers of frames may differ by one. ``video_features``
    cannot decide this: a mean over frames hides their order, and the one frame that differs.
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
