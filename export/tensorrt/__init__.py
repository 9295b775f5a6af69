"""Build TensorRT engines from ONNX graphs, with either flavour of TensorRT.

flavours         the installed library and the GPUs that it builds for
options          build options of each flavour
profiles         ranges of the dynamic axes
network          the bundle's graphs as TensorRT networks, checked against the manifest
graph_audit      FP32 islands and attention blocks of an ONNX graph, fused attention of a plan
progress         TensorRT's progress monitor, and Ctrl-C
plan             the build of one engine
memory           the memory that a finished engine needs
timing_cache     TensorRT's measurements, kept in a file
log              TensorRT's messages
builder          a set of three engines, checked and tested: ``build_engines``
parse_check      a build without engines: ``dry_run``
"""

from xclip_deploy.export.tensorrt.builder import BuildResult, SelfTest, build_engines, verify_on_gpu
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.parse_check import DryRun, dry_run
from xclip_deploy.export.tensorrt.profiles import BatchRange, EngineShapes

__all__ = [
    "BatchRange",
    "BuildResult",
    "DryRun",
    "EngineShapes",
    "SelfTest",
    "TensorRT",
    "build_engines",
    "dry_run",
    "load_tensorrt",
    "verify_on_gpu",
]
