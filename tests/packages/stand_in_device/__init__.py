"""A stand-in for a GPU: the CUDA and TensorRT calls that the runner makes, on the CPU.

It is no simulation of a GPU. It has memory (NumPy's) that is addressed by numbers, streams that
do nothing before they are synchronised, and engines that are ONNX graphs run by ONNX Runtime.
What it tells of arithmetic is what ONNX Runtime computes; what it tells of speed is nothing.

What it is for is to be stricter than the real thing. Reading memory that nothing wrote,
addresses that are free, unaligned or too small, a host buffer that is touched before its copy
was waited for, shapes outside the profile, a context used for two things at once, a graph whose
context has changed: a real GPU returns garbage, sometimes; this raises :class:`Violation`. What
is not given back is seen by :meth:`Device.check_nothing_left`.
"""

from stand_in_device.cuda_runtime import CudaRuntime
from stand_in_device.device import Device, Violation
from stand_in_device.installed import install, install_lean_alone
from stand_in_device.onnxruntime_module import OnnxRuntimeModule
from stand_in_device.plans import write_engines
from stand_in_device.tensorrt_module import TensorRTModule

__all__ = [
    "CudaRuntime",
    "Device",
    "OnnxRuntimeModule",
    "TensorRTModule",
    "Violation",
    "install",
    "install_lean_alone",
    "write_engines",
]
