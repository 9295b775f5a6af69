"""A gallery of random features for the exported model, in memory and in LanceDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy_scan import Unlearned, open_scans

from stand_in_device import Device, install
from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
from xclip_deploy.runtime.resident.residence import Residence
from xclip_deploy.runtime.search import Query, Searcher
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.sessions import SessionOptions

NUM_VIDEOS = 120


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.floating] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / lengths).astype(np.float32)


MakeSearcher = Callable[..., Searcher]


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


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    stand_in = Device()
    install(monkeypatch, stand_in)
    yield stand_in
    stand_in.check_nothing_left()


@pytest.fixture(scope="module")
def open_model(bundle: Bundle) -> Iterator[Callable[..., DeployedModel]]:
    """Open a model with options, once each."""
    opened: dict[tuple[Any, ...], DeployedModel] = {}

    def open_once(**options: Any) -> DeployedModel:
        key = tuple(sorted(options.items()))
        if key not in opened:
            opened[key] = DeployedModel(bundle, SessionOptions(**options))
        return opened[key]

    yield open_once
    for each in opened.values():
        each.close()


@pytest.fixture
def make_searcher(
    device: Device, bundle: Bundle, model: DeployedModel, open_model: Callable[..., DeployedModel]
) -> Iterator[MakeSearcher]:
    """Make a searcher with a residence on the stand-in; ``auto`` is one of a model on a GPU."""
    made: list[Residence] = []
    weights = bundle.scorer_weights()

    def make(
        choice: Any = True,
        *,
        has_products: bool = True,
        planner: Planner | None = None,
        **options: Any,
    ) -> Searcher:
        opened = open_model(resident_gallery=choice, **options)
        scan, products = open_scans(device, model)
        placed = opened.placement
        if choice == "auto":  # as where the model runs on a GPU
            opened._loader.placement = replace(placed, device="cuda")
        residence = Residence(opened, scan, products if has_products else None)
        opened._loader.placement = placed
        made.append(residence)
        planner = planner or Unlearned()
        return Searcher(opened, lambda: weights, planner=planner, residence=residence)

    yield make
    for each in made:
        each.close()
