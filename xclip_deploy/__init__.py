"""X-CLIP video-text retrieval, from a PyTorch checkpoint to production.

>>> from xclip_deploy import Retriever
>>> retriever = Retriever("xclip-bundle")            # doctest: +SKIP
>>> retriever.add(["videos/"])                       # doctest: +SKIP
>>> retriever.search("a dog on a leash", k=5)        # doctest: +SKIP

Everything public is named in ``__all__`` and loaded when it is first used: importing the
package is fast, and using the runtime needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from xclip_deploy.errors import MissingExtraError, XclipDeployError

if TYPE_CHECKING:
    from xclip_deploy.evaluation import evaluate
    from xclip_deploy.export.exporter import ExportResult, export_bundle
    from xclip_deploy.export.tensorrt import BatchRange, BuildResult, EngineShapes, build_engines
    from xclip_deploy.export.triton import TritonExport, export_triton
    from xclip_deploy.export.verification import Certificate, verify_bundle
    from xclip_deploy.runtime.async_retriever import AsyncRetriever
    from xclip_deploy.runtime.benchmark import Benchmark, BenchmarkPlan, benchmark_sessions
    from xclip_deploy.runtime.bundle import Bundle
    from xclip_deploy.runtime.datasets import Split, SplitVideo, open_dataset
    from xclip_deploy.runtime.deployed_model import DeployedModel
    from xclip_deploy.runtime.engine_set import BuildOptions
    from xclip_deploy.runtime.evaluation import Evaluation
    from xclip_deploy.runtime.evidence import Contrast, Explanation
    from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
    from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, VideoFile
    from xclip_deploy.runtime.indexing import IndexReport
    from xclip_deploy.runtime.manifest import Precision
    from xclip_deploy.runtime.metrics import RetrievalMetrics, RetrievalResult, retrieval_metrics
    from xclip_deploy.runtime.results import (
        FailedVideo,
        GrainScores,
        SearchResult,
        SearchResults,
    )
    from xclip_deploy.runtime.retriever import Retriever
    from xclip_deploy.runtime.search import QueryBank
    from xclip_deploy.runtime.sessions import SessionOptions
    from xclip_deploy.runtime.tokenizer import Tokenizer
    from xclip_deploy.runtime.video import FrameSampling, VideoFrames, read_video
    from xclip_deploy.training.checkpoints import Checkpoint, CheckpointOptions, load_checkpoint
    from xclip_deploy.training.config import TrainConfig, resolve_config
    from xclip_deploy.training.torch_matcher import TorchMatcher
    from xclip_deploy.training.trainer import StepReport, TrainResult, train

__version__ = "0.1.0"

_MODULES = {
    "evaluation": ("evaluate",),
    "export.exporter": ("ExportResult", "export_bundle"),
    "export.tensorrt": ("BatchRange", "BuildResult", "EngineShapes", "build_engines"),
    "export.triton": ("TritonExport", "export_triton"),
    "export.verification": ("Certificate", "verify_bundle"),
    "runtime.async_retriever": ("AsyncRetriever",),
    "runtime.benchmark": ("Benchmark", "BenchmarkPlan", "benchmark_sessions"),
    "runtime.bundle": ("Bundle",),
    "runtime.datasets": ("Split", "SplitVideo", "open_dataset"),
    "runtime.deployed_model": ("DeployedModel",),
    "runtime.engine_set": ("BuildOptions",),
    "runtime.evaluation": ("Evaluation",),
    "runtime.evidence": ("Contrast", "Explanation"),
    "runtime.features": ("Scores", "TextFeatures", "VideoFeatures"),
    "runtime.gallery": ("Gallery", "GalleryVideo", "VideoFile"),
    "runtime.manifest": ("Precision",),
    "runtime.metrics": ("RetrievalMetrics", "RetrievalResult", "retrieval_metrics"),
    "runtime.indexing": ("IndexReport",),
    "runtime.results": ("FailedVideo", "GrainScores", "SearchResult", "SearchResults"),
    "runtime.retriever": ("Retriever",),
    "runtime.search": ("QueryBank",),
    "runtime.sessions": ("SessionOptions",),
    "runtime.tokenizer": ("Tokenizer",),
    "runtime.video": ("FrameSampling", "VideoFrames", "read_video"),
    "training.checkpoints": ("Checkpoint", "CheckpointOptions", "load_checkpoint"),
    "training.config": ("TrainConfig", "resolve_config"),
    "training.torch_matcher": ("TorchMatcher",),
    "training.trainer": ("StepReport", "TrainResult", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_EXTRA_OF_PACKAGE = {
    "matplotlib": "train",
    "tomli": "train",
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
}

__all__ = [
    "AsyncRetriever",
    "BatchRange",
    "Benchmark",
    "BenchmarkPlan",
    "BuildOptions",
    "BuildResult",
    "Bundle",
    "Certificate",
    "Checkpoint",
    "CheckpointOptions",
    "Contrast",
    "DeployedModel",
    "EngineShapes",
    "Evaluation",
    "Explanation",
    "ExportResult",
    "FailedVideo",
    "FrameSampling",
    "Gallery",
    "GalleryVideo",
    "GrainScores",
    "IndexReport",
    "MissingExtraError",
    "Precision",
    "QueryBank",
    "RetrievalMetrics",
    "RetrievalResult",
    "Retriever",
    "Scores",
    "SearchResult",
    "SearchResults",
    "SessionOptions",
    "Split",
    "SplitVideo",
    "StepReport",
    "TextFeatures",
    "Tokenizer",
    "TorchMatcher",
    "TrainConfig",
    "TrainResult",
    "TritonExport",
    "VideoFeatures",
    "VideoFile",
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
    "retrieval_metrics",
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
            # PyTorch is of two extras; the one that this name needs in full.
            is_training = _MODULE_OF[name] in ("training.config", "training.trainer")
            extra = "train" if is_training else _EXTRA_OF_PACKAGE[package]
            raise MissingExtraError(package, extra, name) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
