"""Which hits stand for others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.search.near_identical import distinct

RED, GREEN, BLUE = np.eye(3)


def videos(*frames: Sequence[npt.ArrayLike], num_frames: list[int] | None = None) -> VideoFeatures:
    frame_features = np.array(frames, np.float16)
    counts = num_frames or [frame_features.shape[1]] * len(frames)
    return VideoFeatures(frame_features.mean(axis=1), frame_features, np.array(counts, np.int32))


def test_the_first_of_each_group_is_kept() -> None:
    a, near_a, b, long_b, c = [1, 0], [0.999, 0.04], [0, 1], [0, 2], [-1, 0]
    features = videos(*([frame] for frame in (a, near_a, b, long_b, c)))
    assert distinct(features, 0.99, 10) == ([0, 2, 4], {0: [1], 2: [3]})
    assert distinct(features, 0.99, 2) == ([0, 2], {0: [1], 2: [3]})


def test_order_and_single_frames_tell_videos_apart() -> None:
    features = videos([RED, RED, BLUE], [BLUE, RED, RED], [RED, RED, GREEN], [RED, RED, BLUE])
    assert distinct(features, 0.9, 10) == ([0, 1, 2], {0: [3]})


def test_padding_does_not_count() -> None:
    features = videos([RED, BLUE, RED], [RED, BLUE, GREEN], num_frames=[2, 2])
    assert distinct(features, 0.9, 10) == ([0], {0: [1]})


def test_lengths() -> None:
    # Rounding can take a frame from a copy; a video that stops half-way is another one.
    features = videos([RED] * 4, [RED] * 4, [RED] * 4, num_frames=[4, 3, 2])
    assert distinct(features, 0.9, 10) == ([0, 2], {0: [1]})


def test_itself_in_fp16() -> None:
    vector = np.random.default_rng(0).standard_normal(512)
    frame = vector / np.linalg.norm(vector)
    assert distinct(videos([frame], [frame]), 1, 10) == ([0], {0: [1]})


@pytest.mark.parametrize("depth", [1, 10])
def test_nothing(depth: int) -> None:
    empty = VideoFeatures(np.empty((0, 3)), np.empty((0, 2, 3)), np.empty(0, np.int32))
    assert distinct(empty, 0.9, depth) == ([], {})
