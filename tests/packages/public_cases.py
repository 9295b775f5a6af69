"""Every public callable, each with arguments that it takes."""

# Each case is a function of the world, whether it needs the world or not.
# ruff: noqa: ARG005

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import xclip_deploy
from xclip_deploy import (
    AsyncRetriever,
    Bundle,
    DeployedModel,
    Explanation,
    FrameSampling,
    Gallery,
    GalleryVideo,
    QueryBank,
    Retriever,
    SearchResult,
    SearchResults,
    SessionOptions,
    ShardedRetriever,
    TextFeatures,
    VideoFeatures,
    VideoFrames,
)
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.video.segmentation import Segmentation


@dataclass
class Case:
    """A public callable with arguments that it takes."""

    function: Callable[..., object]
    good: dict[str, Any] = field(default_factory=dict)
    reached: str | None = None
    """Where the work begins that is not done here: ``module.name``, replaced by an error."""


@dataclass
class World:
    """What the cases share."""

    bundle: Bundle
    retriever: Retriever
    gallery: Gallery
    stored: Gallery
    """The same in LanceDB."""
    clip: Path
    folder: Path
    sharded: Path
    """An empty gallery in two shards."""

    @property
    def texts(self) -> TextFeatures:
        return self.retriever.encode_texts(["a man", "a dog"])

    @property
    def videos(self) -> VideoFeatures:
        return drawn_features(self.bundle, 2)

    @property
    def frames(self) -> np.ndarray[Any, Any]:
        return np.zeros((2, 90, 120, 3), np.uint8)


def drawn_features(bundle: Bundle, count: int) -> VideoFeatures:
    config = bundle.manifest.model
    frames = np.random.default_rng(5).standard_normal((count, config.max_frames, config.embed_dim))
    frames = (frames / np.linalg.norm(frames, axis=-1, keepdims=True)).astype(np.float32)
    return VideoFeatures(frames[:, 0], frames, np.ones(count, np.int32))


def records(*names: str) -> list[GalleryVideo]:
    return [GalleryVideo(id=name, frame_times_s=(0.0,), metadata={"n": 1}) for name in names]


def image() -> np.ndarray[Any, Any]:
    return np.zeros((90, 120, 3), np.uint8)


def frames_of(world: World) -> VideoFrames:
    return VideoFrames(world.frames, np.arange(2.0), np.arange(2), 2.0, 1.0)


def split_of(world: World) -> Split:
    videos = (SplitVideo("v", world.clip),)
    return Split("test", videos, ("a man",), np.zeros(1, np.int64))


def hit() -> SearchResult:
    return SearchResult(1, "v0", None, 1.0, GrainScores({}), 0.0)


def explanation_of(world: World) -> Explanation:
    return world.retriever.explain("a man", "v0")


def no_hits() -> SearchResults:
    return SearchResults((), "exact", 0, 0, "")


Make = Callable[[World], Case]


def methods_of(
    name: str,
    kind: type,
    given: Mapping[str, Callable[[World], dict[str, Any]]],
    owner: Callable[[World], object],
) -> dict[str, Make]:
    """Cases of all public methods of a class; those without arguments have none."""
    made: dict[str, Make] = {}
    for method, value in inspect.getmembers(kind):
        if method.startswith("_") or not callable(value) or isinstance(value, type):
            continue
        parameters = [n for n in inspect.signature(value).parameters if n not in ("self", "cls")]
        if not parameters:
            continue
        assert method in given, f"{name}.{method} has arguments; give good ones in this test"

        def make(world: World, method: str = method) -> Case:
            return Case(getattr(owner(world), method), given[method](world))

        made[f"{name}.{method}"] = make
    return made


OF_GALLERY: dict[str, Callable[[World], dict[str, Any]]] = {
    "open": lambda w: {"uri": "gallery", "manifest": w.bundle.manifest, "create": True},
    "check_model": lambda w: {"manifest": w.bundle.manifest},
    "add": lambda w: {"videos": records("a", "b"), "features": w.videos},
    "update": lambda w: {"videos": records("v0")},
    "remove": lambda w: {},
    "count": lambda w: {},
    "declare": lambda w: {"types": {"n": int}},
    "videos": lambda w: {},
    "get": lambda w: {"video_id": "v0"},
    "segments": lambda w: {"video_id": "v0"},
    "check_segmentation": lambda w: {"wanted": Segmentation.whole()},
    "check_new": lambda w: {"ids": ["a"]},
    "optimize": lambda w: {},
    "verify": lambda w: {},
    "save": lambda w: {"path": w.folder / "saved"},
    "watch": lambda w: {"watcher": w.retriever.residence},
}


CASES: dict[str, Make] = {
    **methods_of(
        "Retriever",
        Retriever,
        {
            "add": lambda w: {"videos": w.clip, "ids": "new", "metadata": {"n": 2}},
            "estimate": lambda w: {"videos": w.clip},
            "add_features": lambda w: {"videos": records("a", "b"), "features": w.videos},
            "remove": lambda w: {},
            "save": lambda w: {"path": w.folder / "saved"},
            "search": lambda w: {"text": "a man"},
            "search_batch": lambda w: {"texts": ["a man"]},
            "search_by_video": lambda w: {"video": w.frames},
            "search_by_image": lambda w: {"image": image()},
            "query_bank": lambda w: {"texts": ["a man"]},
            "explain": lambda w: {"query": "a man", "a": "v0"},
            "plot_explanation": lambda w: {
                "explanation": explanation_of(w),
                "path": w.folder / "saved",
            },
            "read_video": lambda w: {"path": w.clip},
            "encode_texts": lambda w: {"texts": ["a man"]},
            "encode_videos": lambda w: {"videos": [w.frames]},
            "encode_frames": lambda w: padded(w),
            "score": lambda w: {"texts": w.texts, "videos": w.videos},
        },
        lambda w: w.retriever,
    ),
    **methods_of(
        "DeployedModel",
        DeployedModel,
        {
            "encode_texts": lambda w: {"texts": ["a man"]},
            "count_cut": lambda w: {"texts": ["a man"]},
            "encode_token_ids": lambda w: {
                "token_ids": w.retriever.model.tokenizer.encode(
                    ["a man"], w.bundle.manifest.model.max_words
                )
            },
            "encode_frames": lambda w: padded(w),
            "encode_videos": lambda w: {"videos": [padded(w)["frames"][0]]},
            "embed_frames": lambda w: {"frames": padded(w)["frames"][0]},
            "combine_frames": lambda w: {
                "frame_raw": w.videos.frame_features,
                "num_frames": w.videos.num_frames,
            },
            "score": lambda w: {"texts": w.texts, "videos": w.videos},
            "score_by_graph": lambda w: {"texts": w.texts, "videos": w.videos},
            "score_gallery": lambda w: {"texts": w.texts, "videos": w.videos},
        },
        lambda w: w.retriever.model,
    ),
    **methods_of("Gallery", Gallery, OF_GALLERY, lambda w: w.gallery),
    **methods_of("Gallery on disk", Gallery, OF_GALLERY, lambda w: w.stored),
    **methods_of(
        "Bundle",
        Bundle,
        {
            "open": lambda w: {"path": w.bundle.path},
            "graph_path": lambda w: {"graph": Graph.SCORER, "precision": Precision.FP32},
            "has_fused": lambda w: {"graph": Graph.SCORER, "precision": Precision.FP32},
            "graph_sha256": lambda w: {"graph": Graph.SCORER, "precision": Precision.FP32},
        },
        lambda w: w.bundle,
    ),
    **methods_of(
        "QueryBank",
        QueryBank,
        {
            "calibrate": lambda w: {
                "logits": np.zeros(2, np.float32),
                "videos": w.videos,
                "score": lambda texts, videos: np.zeros((2, 2), np.float32),
            }
        },
        lambda w: QueryBank(w.texts),
    ),
    "AsyncRetriever": lambda w: Case(AsyncRetriever, {"bundle": w.bundle, "device": "cpu"}),
    "AsyncClient": lambda w: Case(xclip_deploy.AsyncClient, {"address": "http://127.0.0.1:1"}),
    "Bundle": lambda w: Case(Bundle, {"path": w.bundle.path, "manifest": w.bundle.manifest}),
    "CheckpointOptions": lambda w: Case(xclip_deploy.CheckpointOptions),
    "Client": lambda w: Case(xclip_deploy.Client, {"address": "http://127.0.0.1:1"}),
    "DeployedModel": lambda w: Case(DeployedModel, {"bundle": w.bundle}),
    "Explanation": lambda w: Case(Explanation, dict(vars(explanation_of(w)))),
    "FrameSampling": lambda w: Case(FrameSampling, {"max_frames": 12}),
    "Gallery": lambda w: Case(Gallery, {"manifest": w.bundle.manifest}),
    "GalleryVideo": lambda w: Case(GalleryVideo, {"id": "a", "frame_times_s": (0.0,)}),
    "QueryBank": lambda w: Case(QueryBank, {"features": w.texts}),
    "Retriever": lambda w: Case(Retriever, {"bundle": w.bundle, "device": "cpu"}),
    "SearchResult": lambda w: Case(SearchResult, dict(vars(hit()))),
    "SearchResults": lambda w: Case(SearchResults, dict(vars(no_hits()))),
    "SessionOptions": lambda w: Case(SessionOptions),
    "ShardedRetriever": lambda w: Case(
        ShardedRetriever,
        {"bundle": w.bundle, "gallery": w.sharded, "device": "cpu"},
        "xclip_deploy.runtime.cluster.retriever.connect",
    ),
    "TextFeatures": lambda w: Case(TextFeatures, dict(vars(w.texts))),
    "VideoFeatures": lambda w: Case(VideoFeatures, dict(vars(w.videos))),
    "VideoFrames": lambda w: Case(VideoFrames, dict(vars(frames_of(w)))),
    "benchmark_sessions": lambda w: Case(
        xclip_deploy.benchmark_sessions,
        {"bundle": w.bundle, "sessions": [SessionOptions("cpu")]},
        "xclip_deploy.runtime.benchmark.measuring.this_machine",
    ),
    "build_engines": lambda w: Case(
        xclip_deploy.build_engines,
        {"bundle": w.bundle},
        "xclip_deploy.export.tensorrt.builder.load_tensorrt",
    ),
    "evaluate": lambda w: Case(
        xclip_deploy.evaluate,
        {"model": w.retriever.model, "split": split_of(w), "frames": [padded(w)["frames"][0]]},
    ),
    "export_bundle": lambda w: Case(
        xclip_deploy.export_bundle,
        {"checkpoint": w.clip, "output": "bundle"},
        "xclip_deploy.export.exporter.load_checkpoint",
    ),
    "export_triton": lambda w: Case(
        xclip_deploy.export_triton,
        {"bundle": w.bundle, "output": "repository"},
        "xclip_deploy.export.triton.repository.onnx_sources",
    ),
    "load_checkpoint": lambda w: Case(xclip_deploy.load_checkpoint, {"path": w.clip}),
    "open_dataset": lambda w: Case(
        xclip_deploy.open_dataset,
        {"name": "folder", "split": "test", "annotations": w.clip, "videos": w.clip.parent},
    ),
    "read_video": lambda w: Case(
        xclip_deploy.read_video,
        {"path": w.clip, "sampling": FrameSampling(max_frames=2), "image_size": 32},
    ),
    "resolve_config": lambda w: Case(xclip_deploy.resolve_config, {"preset": "demo"}),
    "train": lambda w: Case(
        xclip_deploy.train,
        {"config": xclip_deploy.resolve_config("demo"), "output": "run"},
        "xclip_deploy.training.trainer._Run",
    ),
    "verify_bundle": lambda w: Case(
        xclip_deploy.verify_bundle,
        {"bundle": w.bundle},
        "xclip_deploy.export.verification.verifying.open_inputs",
    ),
}


def padded(world: World) -> dict[str, Any]:
    config = world.bundle.manifest.model
    size = config.vision.image_size
    frames = np.zeros((1, config.max_frames, size, size, 3), np.uint8)
    return {"frames": frames, "num_frames": np.ones(1, np.int32)}
