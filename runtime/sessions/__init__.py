"""Inference backends behind one small protocol, one file each."""

from xclip_deploy.runtime.sessions.device import Placement, place
from xclip_deploy.runtime.sessions.onnx_runtime import OnnxRuntimeSession, import_onnxruntime
from xclip_deploy.runtime.sessions.protocol import Session, SessionOptions

__all__ = [
    "OnnxRuntimeSession",
    "Placement",
    "Session",
    "SessionOptions",
    "import_onnxruntime",
    "place",
]
