"""X-CLIP video-text retrieval, from a PyTorch checkpoint to production.

>>> from xclip_deploy import Retriever
>>> retriever = Retriever("xclip-bundle")            # doctest: +SKIP
>>> retriever.add(["videos/"])                       # doctest: +SKIP
>>> retriever.search("a dog on a leash", k=5)        # doctest: +SKIP

``__all__`` lists what most programs need. A name is loaded at its first use, so importing the
package is fast, and the runtime needs no PyTorch. The rest of the public interface is imported
from submodules::

    xclip_deploy.client                 AsyncJob, Job, TextBank
    xclip_deploy.errors                 every error; their tree and exit statuses
    xclip_deploy.moment_evaluation      SearchRanker, index_moments
    xclip_deploy.runtime.arguments      PathName
    xclip_deploy.runtime.benchmark      Benchmark, BenchmarkPlan, Measurement
    xclip_deploy.runtime.cluster        ActorOptions, ShardFile, create_shards, publish_shards
    xclip_deploy.runtime.datasets       Split, SplitVideo, DATASETS
    xclip_deploy.runtime.datasets.moments MomentQuery, MomentSplit, open_moments
    xclip_deploy.runtime.engine_set     BuildOptions, EngineSet, read_engine_set
    xclip_deploy.runtime.evaluation     Evaluation, Matcher, evaluate_matcher
    xclip_deploy.runtime.evaluation.moments MomentEvaluation, Prediction, evaluate_moments
    xclip_deploy.runtime.evidence       BestMoment, Contrast, draw_explanation
    xclip_deploy.runtime.failures       FailedShard, FailedVideo
    xclip_deploy.runtime.features       Scores
    xclip_deploy.runtime.gallery        GalleryStats, MetadataValue, Snapshot, VideoFile
    xclip_deploy.runtime.grain_scores   GrainScores
    xclip_deploy.runtime.indexing       IndexReport
    xclip_deploy.runtime.manifest       Graph, Manifest, Precision
    xclip_deploy.runtime.metrics        RetrievalMetrics, RetrievalResult, retrieval_metrics
    xclip_deploy.runtime.moments        Cut, GridCell
    xclip_deploy.runtime.progress       Progress, ProgressFunction
    xclip_deploy.runtime.results        Moment, TimeRange
    xclip_deploy.runtime.search         SearchOptions
    xclip_deploy.runtime.sessions       Placement
    xclip_deploy.runtime.tokenizer      Tokenizer
    xclip_deploy.runtime.video          ImageLike, VideoLike, VideoReading
    xclip_deploy.training.checkpoints   Checkpoint, save_checkpoint
    xclip_deploy.training.config        TrainConfig
    xclip_deploy.training.torch_matcher TorchMatcher
    xclip_deploy.training.trainer       StepReport, TrainResult
    xclip_deploy.export.exporter        ExportResult
    xclip_deploy.export.tensorrt        BatchRange, BuildResult, EngineShapes
    xclip_deploy.export.triton          TritonExport
    xclip_deploy.export.verification    Certificate
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from xclip_deploy.errors import MissingExtraError, XclipDeployError

if TYPE_CHECKING:
    from xclip_deploy.client import AsyncClient, Client
    from xclip_deploy.evaluation import evaluate
    from xclip_deploy.export.exporter import export_bundle
    from xclip_deploy.export.tensorrt import build_engines
    from xclip_deploy.export.triton import export_triton
    from xclip_deploy.export.verification import verify_bundle
    from xclip_deploy.runtime.async_retriever import AsyncRetriever
    from xclip_deploy.runtime.benchmark import benchmark_sessions
    from xclip_deploy.runtime.bundle import Bundle
    from xclip_deploy.runtime.cluster import ShardedRetriever
    from xclip_deploy.runtime.datasets import open_dataset
    from xclip_deploy.runtime.deployed_model import DeployedModel
    from xclip_deploy.runtime.evidence import Explanation
    from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
    from xclip_deploy.runtime.gallery import Gallery, GalleryVideo
    from xclip_deploy.runtime.results import SearchResult, SearchResults
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.runtime.search import QueryBank
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.runtime.video import FrameSampling, VideoFrames, read_video
    from xclip_deploy.training.checkpoints import CheckpointOptions, load_checkpoint
    from xclip_deploy.training.config import resolve_config
    from xclip_deploy.training.trainer import train

__version__ = "0.1.0"

_MODULES = {
    "client": ("AsyncClient", "Client"),
    "evaluation": ("evaluate",),
    "export.exporter": ("export_bundle",),
    "export.tensorrt": ("build_engines",),
    "export.triton": ("export_triton",),
    "export.verification": ("verify_bundle",),
    "runtime.async_retriever": ("AsyncRetriever",),
    "runtime.benchmark": ("benchmark_sessions",),
    "runtime.bundle": ("Bundle",),
    "runtime.datasets": ("open_dataset",),
    "runtime.cluster": ("ShardedRetriever",),
    "runtime.deployed_model": ("DeployedModel",),
    "runtime.evidence": ("Explanation",),
    "runtime.features": (
        "TextFeatures",
        "VideoFeatures",
    ),
    "runtime.gallery": (
        "Gallery",
        "GalleryVideo",
    ),
    "runtime.results": (
        "SearchResult",
        "SearchResults",
    ),
    "runtime.retriever": ("Retriever",),
    "runtime.search": ("QueryBank",),
    "runtime.sessions": ("SessionOptions",),
    "runtime.video": (
        "FrameSampling",
        "VideoFrames",
        "read_video",
    ),
    "training.checkpoints": (
        "CheckpointOptions",
        "load_checkpoint",
    ),
    "training.config": ("resolve_config",),
    "training.trainer": ("train",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_EXTRA_OF_PACKAGE = {
    "httpx2": "client",
    "matplotlib": "train",
    "tomli": "train",
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
}

__all__ = [
    "AsyncClient",
    "AsyncRetriever",
    "Bundle",
    "CheckpointOptions",
    "Client",
    "DeployedModel",
    "Explanation",
    "FrameSampling",
    "Gallery",
    "GalleryVideo",
    "QueryBank",
    "Retriever",
    "SearchResult",
    "SearchResults",
    "SessionOptions",
    "ShardedRetriever",
    "TextFeatures",
    "VideoFeatures",
    "VideoFrames",
    "XclipDeployError",
    "benchmark_sessions",
    "build_engines",
    "evaluate",
    "export_bundle",
    "export_triton",
    "load_checkpoint",
    "open_dataset",
    "read_video",
    "resolve_config",
    "train",
    "verify_bundle",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value: object = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA_OF_PACKAGE:
            # Two extras install PyTorch. Name the one with everything that this name needs.
            is_training = _MODULE_OF[name] in ("training.config", "training.trainer")
            extra = "train" if is_training else _EXTRA_OF_PACKAGE[package]
            raise MissingExtraError(package, extra, name) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
