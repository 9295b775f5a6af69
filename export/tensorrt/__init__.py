"""ONNX graphs → TensorRT engines, with either flavour of TensorRT."""

from xclip_deploy.export.tensorrt.builder import BuildResult, build_engines
from xclip_deploy.export.tensorrt.flavours import TensorRT, load_tensorrt
from xclip_deploy.export.tensorrt.profiles import BatchRange, EngineShapes

__all__ = [
    "BatchRange",
    "BuildResult",
    "EngineShapes",
    "TensorRT",
    "build_engines",
    "load_tensorrt",
]
