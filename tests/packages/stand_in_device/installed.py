"""The stand-in in the place of CUDA and TensorRT, for the length of a test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stand_in_device.cuda_driver import CudaDriver
from stand_in_device.cuda_runtime import CudaRuntime
from stand_in_device.device import Device
from stand_in_device.plans import RTX_VERSION, VERSION
from stand_in_device.tensorrt_module import TensorRTModule

if TYPE_CHECKING:
    import pytest


def install(
    monkeypatch: pytest.MonkeyPatch, device: Device
) -> tuple[TensorRTModule, TensorRTModule]:
    """Make imports of CUDA's bindings, tensorrt and tensorrt_rtx find the stand-in.

    Nothing of the product is replaced but the question whether there is a driver. Returns the
    two modules.
    """
    from xclip_deploy.runtime import nvidia_driver

    enterprise = TensorRTModule(device, VERSION, is_rtx=False)
    rtx = TensorRTModule(device, RTX_VERSION, is_rtx=True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", CudaRuntime(device))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", CudaDriver(device))
    monkeypatch.setitem(sys.modules, "tensorrt", enterprise)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setattr(nvidia_driver, "why_no_gpu", lambda: None)
    # A machine may have the real one, which the stand-in's plans would puzzle.
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    return enterprise, rtx


def install_lean_alone(monkeypatch: pytest.MonkeyPatch, enterprise: TensorRTModule) -> None:
    """Leave of TensorRT only its lean runtime, under the name of that."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", enterprise)
