"""Search and explanation name the same best frame, of frames that are alike too."""

from __future__ import annotations

import numpy as np
import pytest

from xclip_deploy import Bundle, GalleryVideo, Retriever, VideoFeatures
from xclip_deploy.runtime.arrays import first_best

QUERIES = [f"{colour} {what}" for colour in ("a red", "a blue", "some") for what in ("dog", "car")]


def still_videos(bundle: Bundle, count: int) -> tuple[list[GalleryVideo], VideoFeatures]:
    """Videos of one picture each: without a temporal head their frames have equal features."""
    rng = np.random.default_rng(3)
    model = bundle.manifest.model
    features = rng.standard_normal((count, model.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    frames = np.zeros((count, model.max_frames, model.embed_dim), np.float32)
    frames[..., 0] = 1  # padding is a frame of its own, of unit length
    numbers = rng.integers(1, model.max_frames + 1, count).astype(np.int32)
    for n, number in enumerate(numbers):
        frames[n, :number] = features[n]
    videos = [
        GalleryVideo(id=f"{n}.mp4", frame_times_s=tuple(np.arange(number) + 0.5))
        for n, number in enumerate(numbers.tolist())
    ]
    return videos, VideoFeatures(features, frames, numbers)


def test_of_equal_frames_the_first_is_the_best(bundle: Bundle) -> None:
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add_features(*still_videos(bundle, 30))
        for query in QUERIES:
            for hit in retriever.search(query, k=30):
                explanation = retriever.explain(query, hit)
                assert hit.best_frame_time_s == 0.5
                assert explanation.best_moment.best_frame_time_s == 0.5
                assert {word.best_frame for word in explanation.words} == {0}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.3], 0),
        ([0.1, 0.3, 0.2], 1),
        ([0.3 - 1e-7, 0.3, 0.3], 0),
        ([0.3 - 1e-5, 0.3, 0.3 + 1e-7], 1),
        ([-1.0, -0.5, -0.5], 1),
    ],
)
def test_first_best(values: list[float], best: int) -> None:
    for dtype in (np.float32, np.float64):
        assert first_best(np.array(values, dtype)) == best
