"""Choosing where to run, and saying why."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.manifest import Precision
from xclip_deploy.runtime.sessions.protocol import SessionOptions


@dataclass(frozen=True)
class Placement:
    """The device and precision that were chosen."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    reason: str
    """One line for people: what was asked for or found."""


def place(
    options: SessionOptions, available: tuple[Precision, ...], providers: list[str]
) -> Placement:
    """Choose device and precision.

    ``available``: precisions of the bundle. ``providers``: ONNX Runtime's.
    Raises SessionError where what was asked for is not there.
    """
    device, reason = _choose_device(options, providers)
    if options.precision == "auto":
        wanted = Precision.FP16 if device == "cuda" else Precision.FP32
        precision = wanted if wanted in available else available[0]
    else:
        precision = Precision(options.precision)
    if precision not in available:
        raise SessionError(
            f"precision {precision.value} was asked for; the bundle has "
            f"{', '.join(p.value for p in available)}"
        )
    return Placement(device, precision, reason)


def _choose_device(
    options: SessionOptions, providers: list[str]
) -> tuple[Literal["cpu", "cuda"], str]:
    if options.device == "cpu":
        return "cpu", "cpu was asked for"
    missing = why_no_cuda(providers)
    if missing is None:
        return "cuda", f"{options.device} was asked for, and a GPU is there"
    if options.device == "cuda":
        raise SessionError(f"device cuda was asked for, but {missing}")
    return "cpu", f"auto: {missing}"


def why_no_cuda(providers: list[str]) -> str | None:
    """Why ONNX Runtime cannot run on a GPU here, or None where it should."""
    if "CUDAExecutionProvider" not in providers:
        return (
            "this onnxruntime has no CUDA provider; "
            "run: pip uninstall -y onnxruntime && pip install 'xclip-deploy[gpu]'"
        )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 not found)"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver reports CUDA error {status}"
    return None if count.value > 0 else "the NVIDIA driver sees no GPU"
