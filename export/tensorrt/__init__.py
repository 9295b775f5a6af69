"""ONNX graphs → TensorRT engines, with either flavour of TensorRT.

flavours         which library is there, and what it builds for
options          what a build may be asked for, and which flavour has it
profiles         ranges of the dynamic axes
network          the bundle's graphs as TensorRT networks, and what their boundary must be
graph_audit      FP32 islands and attention blocks, read off the ONNX graph; fused ones, off a plan
progress         TensorRT's progress monitor, and Ctrl-C
plan             building one engine
memory           what the finished engine needs
timing_cache, log         TensorRT's measurements and messages
builder          a set of three, with its proofs and its test on a GPU: ``build_engines``
parse_check      parsing alone: ``dry_run``
"""

from xclip_deploy.export.tensorrt.builder import BuildResult, SelfTest, build_engines, verify_on_gpu
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.parse_check import DryRun, dry_run
from xclip_deploy.export.tensorrt.profiles import BatchRange, EngineShapes
from xclip_deploy.export.tensorrt.progress import BuildStep

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
