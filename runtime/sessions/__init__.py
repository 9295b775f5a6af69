"""Inference backends behind one small protocol: ONNX Runtime, and TensorRT engines."""

from xclip_deploy.runtime.sessions.device import Placement, place
from xclip_deploy.runtime.sessions.onnx_runtime import OnnxRuntimeSession, import_onnxruntime
from xclip_deploy.runtime.sessions.protocol import Backend, BackendName, Session, SessionOptions

__all__ = [
    "Backend",
    "BackendName",
    "OnnxRuntimeSession",
    "Placement",
    "Session",
    "SessionOptions",
    "import_onnxruntime",
    "place",
]
