"""The CUDA runtime: what is called exists, and every failure says what it was."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
from cuda.bindings import runtime as real

import xclip_deploy.runtime.cuda as cuda_package
import xclip_deploy.runtime.sessions.native as native_package
from stand_in_device import CudaRuntime, Device
from xclip_deploy.errors import DriverError, MissingExtraError
from xclip_deploy.runtime.cuda.runtime_api import FUNCTIONS, CudaCallError, open_cuda
from xclip_deploy.runtime.nvidia_driver import why_no_gpu


def test_every_name_is_in_the_bindings() -> None:
    """Collected from the source; names of enum members too."""
    names = {
        name
        for package in (cuda_package, native_package)
        for file in Path(package.__path__[0]).glob("*.py")
        for name in re.findall(r"\bcuda[A-Z]\w+", file.read_text())
    }
    enums = (
        real.cudaError_t,
        real.cudaMemcpyKind,
        real.cudaStreamCaptureMode,
        real.cudaDeviceAttr,
    )
    names -= {member.name for kind in enums for member in kind}
    assert not {name for name in names if not hasattr(real, name)}
    called = {name for name in names if inspect.isroutine(getattr(real, name))}
    assert called == set(FUNCTIONS)


def test_the_stand_in_has_all_functions_and_no_others() -> None:
    found = {name for name in vars(CudaRuntime) if name.startswith("cuda")}
    assert set(FUNCTIONS) <= found
    assert all(hasattr(real, name) for name in found)


def test_what_a_gpu_is(device: Device) -> None:
    gpu = open_cuda().gpu()
    assert (gpu.device_id, gpu.name, gpu.compute_capability, gpu.target) == (
        0,
        "stand-in device (no GPU)",
        (8, 9),
        "sm89",
    )


def test_no_driver(device: Device) -> None:
    device.driver_version = 0
    with pytest.raises(DriverError, match=r"no NVIDIA driver is installed; install one for CUDA 1"):
        open_cuda()


def test_no_driver_by_the_real_bindings() -> None:
    if why_no_gpu() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DriverError, match="driver"):
        open_cuda()


def test_driver_too_old(device: Device) -> None:
    device.driver_version = 12040
    with pytest.raises(
        DriverError, match=r"it runs CUDA 12.4, and cuda-bindings here needs 13.0"
    ) as c:
        open_cuda()
    assert str(c.value).endswith("run: pip install 'cuda-bindings<13'")


def test_driver_too_old_by_the_status(device: Device) -> None:
    device.driver_version = 13000
    device.runtime_version = 13050
    device.fail("cudaGetDeviceCount", "cudaErrorInsufficientDriver")
    with pytest.raises(DriverError, match=r"it runs CUDA 13.0, the CUDA runtime here is 13.5"):
        open_cuda()


def test_a_driver_of_the_same_major_version_will_do(device: Device) -> None:
    device.driver_version = 13000
    open_cuda()


def test_no_gpu(device: Device) -> None:
    device.count = 0
    with pytest.raises(DriverError, match="the NVIDIA driver sees no GPU"):
        open_cuda()


def test_a_gpu_that_is_not_there(device: Device) -> None:
    with pytest.raises(DriverError, match="GPU 1 was asked for, the driver sees 1"):
        open_cuda(1)
    device.count = 3
    assert open_cuda(2).device_id == 2


@pytest.mark.parametrize("extra", ["tensorrt", "rtx"])
def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=rf"run: pip install 'xclip-deploy\[{extra}\]'"):
        open_cuda(extra=extra)


def test_a_status_is_reported_by_name(device: Device) -> None:
    cuda = open_cuda()
    device.fail("cudaStreamCreateWithFlags", "cudaErrorIllegalAddress")
    with pytest.raises(CudaCallError) as caught:
        cuda.create_stream()
    assert str(caught.value) == (
        "cudaStreamCreateWithFlags failed with cudaErrorIllegalAddress: "
        "an illegal memory access was encountered; CUDA works no more in this process: end it, "
        "and start it again"
    )
    assert caught.value.name == "cudaErrorIllegalAddress"
    assert caught.value.exit_code == 9
