"""A gallery of random features for the exported model, in memory and in LanceDB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.search import Query, Searcher

NUM_VIDEOS = 120


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.floating] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / lengths).astype(np.float32)


@pytest.fixture(scope="session")
def features(bundle: Bundle) -> VideoFeatures:
    """Videos in pairs: every odd one is nearly the one before it."""
    config = bundle.manifest.model
    rng = np.random.default_rng(5)
    core = np.repeat(rng.standard_normal((NUM_VIDEOS // 2, 1, config.embed_dim)), 2, axis=0)
    core[1::2] += 0.02 * rng.standard_normal((NUM_VIDEOS // 2, 1, config.embed_dim))
    spread = rng.standard_normal((NUM_VIDEOS // 2, config.max_frames, config.embed_dim))
    frames = unit(core + 0.5 * np.repeat(spread, 2, axis=0))
    return VideoFeatures(
        unit(frames.mean(axis=1)),
        frames,
        np.full(NUM_VIDEOS, config.max_frames, np.int32),
    )


@pytest.fixture(scope="session")
def videos(bundle: Bundle) -> list[GalleryVideo]:
    frames = bundle.manifest.model.max_frames
    return [
        GalleryVideo(
            id=f"v{n:03d}",
            path=f"/videos/{n:03d}.mp4",
            duration_s=float(n),
            frame_times_s=tuple(float(t) for t in range(frames)),
            metadata={"source": f"cam{n % 3}", "number": n},
        )
        for n in range(NUM_VIDEOS)
    ]


@pytest.fixture(scope="session", params=["memory", "lancedb"])
def gallery(
    request: pytest.FixtureRequest,
    bundle: Bundle,
    videos: list[GalleryVideo],
    features: VideoFeatures,
    tmp_path_factory: pytest.TempPathFactory,
) -> Gallery:
    if request.param == "memory":
        gallery = Gallery(bundle.manifest)
    else:
        path: Path = tmp_path_factory.mktemp("search") / "gallery"
        gallery = Gallery.open(path, bundle.manifest, create=True)
    gallery.add(videos, features)
    return gallery


@pytest.fixture(scope="session")
def model(bundle: Bundle) -> DeployedModel:
    return DeployedModel(bundle)


@pytest.fixture
def searcher(model: DeployedModel, bundle: Bundle) -> Searcher:
    weights = bundle.scorer_weights()
    return Searcher(model, lambda: weights)


@pytest.fixture(scope="session")
def make_queries(bundle: Bundle, features: VideoFeatures) -> Callable[[int], list[Query]]:
    """Texts that resemble video 0, 7, 14 and so on."""
    config = bundle.manifest.model

    def make(count: int) -> list[Query]:
        rng = np.random.default_rng(9)
        queries = []
        for n in range(count):
            core = features.video_features[7 * n % NUM_VIDEOS]
            words = unit(core + 0.8 * unit(rng.standard_normal((config.max_words, len(core)))))
            text = TextFeatures(
                words[:1], words[np.newaxis], np.array([config.max_words], np.int32)
            )
            queries.append(Query(text))
        return queries

    return make
