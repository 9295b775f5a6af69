# ruff: noqa: N802 - the names are those of the library
"""What the driver says, by a library that answers as NVIDIA's would, and by the real one."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from xclip_deploy.runtime import nvidia_driver
from xclip_deploy.runtime.nvidia_driver import GpuMemoryGauge, VisibleGpu

MIB = 1 << 20
ERROR = 999


class Library:
    """``libcuda`` with the GPUs and the failures of a test."""

    def __init__(self, gpus: list[VisibleGpu], failing: dict[str, int] | None = None) -> None:
        self.gpus = gpus
        self.failing = failing or {}
        self.free_bytes = 100 * MIB
        self.contexts: list[int | None] = [7]
        """The current ones of this thread, the innermost last; 7 belongs to a session."""

    def __getattr__(self, name: str) -> Any:
        answer = getattr(type(self), f"on_{name}")

        def call(*arguments: Any) -> int:
            if name in self.failing:
                return self.failing[name]
            arguments = tuple(getattr(value, "_obj", value) for value in arguments)
            return int(answer(self, *arguments) or 0)

        return call

    def on_cuInit(self, flags: int) -> None:
        assert flags == 0

    def on_cuDriverGetVersion(self, number: ctypes.c_int) -> None:
        number.value = 13050

    def on_cuDeviceGetCount(self, count: ctypes.c_int) -> None:
        count.value = len(self.gpus)

    def on_cuDeviceGet(self, device: ctypes.c_int, number: int) -> int:
        device.value = number
        return 0 if number < len(self.gpus) else 101

    def on_cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> None:
        name.value = self.gpus[device.value].name.encode()[: size - 1]

    def on_cuDeviceGetAttribute(
        self, found: ctypes.c_int, attribute: int, device: ctypes.c_int
    ) -> None:
        gpu = self.gpus[device.value]
        found.value = {75: gpu.major, 76: gpu.minor}[attribute]

    def on_cuDevicePrimaryCtxRetain(self, context: ctypes.c_void_p, device: ctypes.c_int) -> None:
        context.value = 100 + device.value
        self.free_bytes -= 10 * MIB

    def on_cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> None:
        self.contexts.append(context.value)

    def on_cuMemGetInfo_v2(self, free: ctypes.c_size_t, total: ctypes.c_size_t) -> None:
        assert self.contexts[-1] == 100, "asked of the GPU that the gauge is for"
        free.value, total.value = self.free_bytes, 100 * MIB

    def on_cuCtxPopCurrent_v2(self, context: ctypes.c_void_p) -> None:
        context.value = self.contexts.pop()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(*gpus: VisibleGpu, **failing: int) -> Library:
        library = Library(list(gpus), failing)
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
        return library

    return put


H100, L4 = VisibleGpu("NVIDIA H100", 9, 0), VisibleGpu("NVIDIA L4", 8, 9)


def test_gpus_are_listed_in_order(install: Any) -> None:
    install(H100, L4)
    assert nvidia_driver.why_no_gpu() is None
    assert nvidia_driver.visible_gpus() == (H100, L4)
    assert nvidia_driver.first_gpu() == H100
    assert nvidia_driver.driver_cuda_version() == "13.5"


def test_a_driver_that_sees_no_gpu(install: Any) -> None:
    install()
    assert nvidia_driver.why_no_gpu() == "the NVIDIA driver sees no GPU"
    assert nvidia_driver.visible_gpus() == ()
    assert nvidia_driver.first_gpu() is None
    assert nvidia_driver.driver_cuda_version() == "13.5"


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_that_fails(install: Any, function: str) -> None:
    install(H100, **{function: ERROR})
    assert nvidia_driver.why_no_gpu() == "the NVIDIA driver reports CUDA error 999"
    assert nvidia_driver.visible_gpus() == ()


def test_a_gpu_that_does_not_answer_is_left_out(install: Any) -> None:
    install(H100, cuDeviceGetName=ERROR)
    assert nvidia_driver.visible_gpus() == ()
    assert nvidia_driver.first_gpu() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    assert nvidia_driver.why_no_gpu() == (
        "no NVIDIA driver is installed (libcuda-that-is-not-there.so.1 not found)"
    )
    assert nvidia_driver.visible_gpus() == ()
    assert nvidia_driver.first_gpu() is None
    assert nvidia_driver.driver_cuda_version() is None
    with pytest.raises(OSError, match="no NVIDIA driver"):
        GpuMemoryGauge(0)


def test_the_gauge_counts_from_its_beginning(install: Any) -> None:
    """The context that it makes itself is not counted, and a session's stays the current one."""
    library = install(H100)
    gauge = GpuMemoryGauge(0)
    assert gauge.taken_bytes() == 0
    library.free_bytes -= 3 * MIB
    assert gauge.taken_bytes() == 3 * MIB
    library.free_bytes += 4 * MIB
    assert gauge.taken_bytes() == 0, "another program gave memory back"
    library.failing["cuMemGetInfo_v2"] = ERROR
    with pytest.raises(OSError, match="CUDA error 999"):
        gauge.taken_bytes()
    assert library.contexts == [7]


def test_a_gauge_of_a_gpu_that_is_not_there(install: Any) -> None:
    install(H100)
    with pytest.raises(OSError, match="CUDA error 101"):
        GpuMemoryGauge(1)


@pytest.mark.gpu
@pytest.mark.skipif(nvidia_driver.why_no_gpu() is not None, reason="there is no GPU")
def test_the_real_driver() -> None:
    gpu = nvidia_driver.first_gpu()
    assert gpu is not None
    assert gpu == nvidia_driver.visible_gpus()[0]
    assert gpu.name
    assert (gpu.major, gpu.minor) >= (5, 0)
    assert 0 <= GpuMemoryGauge(0).taken_bytes() < 64 * MIB
