"""ONNX graphs → TensorRT engines, with either flavour of TensorRT.

flavours         which library is there, and what it builds for
options          what a build may be asked for, and which flavour has it
profiles         ranges of the dynamic axes
sources          the bundle's graphs
network          ONNX into a TensorRT network, and what its boundary must be
graph_audit      FP32 islands and attention blocks, read off the ONNX graph
progress         TensorRT's progress monitor, and Ctrl-C
plan             building one engine
memory, fused_attention   what the finished engine needs and holds
timing_cache, log         TensorRT's measurements and messages
self_test        running new engines, on a GPU
builder          a set of three, with its proofs: ``build_engines``
dry_run          parsing alone
"""

from xclip_deploy.export.tensorrt.builder import BuildResult, build_engines
from xclip_deploy.export.tensorrt.dry_run import DryRun, dry_run
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.profiles import BatchRange, EngineShapes
from xclip_deploy.export.tensorrt.progress import BuildStep
from xclip_deploy.export.tensorrt.self_test import SelfTest, verify_on_gpu

__all__ = [
    "BatchRange",
    "BuildResult",
    "BuildStep",
    "DryRun",
    "EngineShapes",
    "SelfTest",
    "TensorRT",
    "build_engines",
    "dry_run",
    "load_tensorrt",
    "verify_on_gpu",
]
