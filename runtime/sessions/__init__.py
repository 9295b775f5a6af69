"""Inference backends behind one interface: ONNX Runtime and TensorRT engines."""

from xclip_deploy.runtime.sessions.backend import (
    Backend,
    GalleryScorer,
    GraphLoader,
    Placement,
    Refusal,
    Session,
)
from xclip_deploy.runtime.sessions.options import DeviceName, SessionOptions
from xclip_deploy.runtime.sessions.placement import offers, place
from xclip_deploy.runtime.sessions.registry import Arithmetic, register

__all__ = [
    "Arithmetic",
    "Backend",
    "DeviceName",
    "GalleryScorer",
    "GraphLoader",
    "Placement",
    "Refusal",
    "Session",
    "SessionOptions",
    "offers",
    "place",
    "register",
]
