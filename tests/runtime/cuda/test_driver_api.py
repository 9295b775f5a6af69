"""Kernels are launched by the driver's own names, and the stand-in refuses what a GPU would not."""

from __future__ import annotations

import ctypes
import inspect
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real

import xclip_deploy.runtime.cuda as cuda_package
from stand_in_device import Device, Violation, install
from stand_in_device.cuda_driver import CudaDriver
from stand_in_device.kernels import kernel_image
from xclip_deploy.errors import MissingExtraError, SessionError
from xclip_deploy.runtime.cuda.driver_api import FUNCTIONS, Driver, KernelFunction, open_driver
from xclip_deploy.runtime.cuda.gate import CAPTURES
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream, open_cuda
from xclip_deploy.runtime.grains import CLIP_GRAINS
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, Kernel
from xclip_deploy.runtime.resident.shape import ScanShape

SHAPE = ScanShape(embed_dim=64, max_frames=1, max_words=3, grains=CLIP_GRAINS, mask_padding=False)
SHARED = 64 << 10


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose violations are the test's purpose."""
    device = Device()
    install(monkeypatch, device)
    return device


@pytest.fixture
def cuda(lenient: Device) -> Cuda:
    return open_cuda()


@pytest.fixture
def driver(cuda: Cuda) -> Driver:
    return open_driver()


def load(driver: Driver, kernel: Kernel = Kernel.DIGIT, **changes: Any) -> KernelFunction:
    image = kernel_image(kernel, SHAPE, (8, 9), shared_bytes=SHARED, **changes)
    return driver.load(image, kernel.value, tuple(ARGUMENTS[kernel].values()), 4, SHARED)


def arguments(cuda: Cuda, stream: Stream, slots: int = 4) -> list[int | float]:
    """Arguments of ``digit_kernel``, with scores and counts of so many slots on the device."""
    host = cuda.allocate_pinned(8192)
    ctypes.memset(host, 0, 8192)
    scores, counts = cuda.allocate(4 * slots), cuda.allocate(8192)
    cuda.copy_to_device(scores, host, 4 * slots, stream)
    cuda.copy_to_device(counts, host, 8192, stream)
    cuda.synchronize(stream)
    return [scores, scores, counts, slots, 0, 1, 0]


def test_every_name_is_in_the_bindings() -> None:
    """Collected from the source."""
    text = "".join(f.read_text() for f in Path(cuda_package.__path__[0]).glob("*.py"))
    names = set(re.findall(r"\bcu[A-Z]\w+", text))
    assert names == set(FUNCTIONS)
    assert all(inspect.isroutine(getattr(real, name)) for name in names)
    for name in re.findall(r"\bCU_\w+", text):
        assert hasattr(real.CUfunction_attribute, name)
    for name in re.findall(r"\"(CUDA_\w+)\"", text):
        assert hasattr(real.CUresult, name)


def test_the_stand_in_has_all_functions_and_no_others() -> None:
    found = {name for name in vars(CudaDriver) if name.startswith("cu")}
    assert found == set(FUNCTIONS)
    assert all(hasattr(real, name) for name in found)


def test_the_bindings_take_our_arguments() -> None:
    """They check the types of a kernel's arguments before they look for a driver."""
    types = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_float)
    rest = (1, 1, 1, 32, 1, 1, 0, real.CUstream(0))
    with pytest.raises(TypeError, match="Unsupported type"):
        real.cuLaunchKernel(real.CUfunction(1), *rest, ((1, 2, 3.0), (*types[:2], object)), 0)
    try:
        status = real.cuLaunchKernel(real.CUfunction(0), *rest, ((1, 2, 3.0), types), 0)
    except RuntimeError as error:
        assert "driver" in str(error)  # noqa: PT017 - on a machine with a driver none is raised
    else:
        assert status[0] != real.CUresult.CUDA_SUCCESS


def test_a_launch_computes(lenient: Device, cuda: Cuda, driver: Driver) -> None:
    stream = cuda.create_stream()
    function, values = load(driver), arguments(cuda, cuda.create_stream())
    driver.launch(function, (1, 1), values, stream)
    host = cuda.allocate_pinned(8192)
    cuda.copy_to_host(host, int(values[2]), 8192, stream)
    cuda.synchronize(stream)
    counts = np.ctypeslib.as_array((ctypes.c_int32 * 2048).from_address(host)).reshape(8, 256)
    assert counts[0].sum() == 4
    assert counts[0, 0x40] == 4  # a score of 0.0 is in the middle of all numbers


def test_what_a_gpu_would_not_refuse(lenient: Device, cuda: Cuda, driver: Driver) -> None:
    stream = cuda.create_stream()
    function, values = load(driver), arguments(cuda, stream)
    handle = function.handle
    with pytest.raises(SessionError, match="digit_kernel takes 7 arguments, got 6"):
        driver.launch(function, (1, 1), values[:-1], stream)
    with pytest.raises(Violation, match="scores of digit_kernel: 0x10 is no device memory"):
        driver.launch(function, (1, 1), [16, *values[1:]], stream)
    with pytest.raises(Violation, match="scores at an address that is not aligned"):
        driver.launch(function, (1, 1), [int(values[0]) + 4, *values[1:]], stream)
    with pytest.raises(Violation, match="count of digit_kernel is 4294967296"):
        driver.launch(function, (1, 1), [*values[:5], 1 << 32, 0], stream)
    types = [ctypes.c_void_p] * 3 + [ctypes.c_int32] * 4 + [ctypes.c_void_p] * 2
    sizes = (1, 1, 1, 128, 1, 1)

    def raw(given: Any, kinds: Any, shared: int = SHARED, of: Any = sizes) -> None:
        driver._api.cuLaunchKernel(
            handle, *of, shared, real.CUstream(int(stream)), (tuple(given), tuple(kinds)), 0
        )

    with pytest.raises(Violation, match="digit_kernel with 8 arguments, not 9"):
        raw([*values, 0], types[:-1])
    with pytest.raises(Violation, match="S of digit_kernel as c_long"):
        raw([*values, 0, 0], [*types[:3], ctypes.c_int64, *types[4:]])
    with pytest.raises(Violation, match="scratch areas that the kernel has not"):
        raw([*values, 1, 0], types)
    with pytest.raises(Violation, match="with 1024 bytes of shared memory"):
        raw([*values, 0, 0], types, shared=1024)
    with pytest.raises(Violation, match="with 64 threads a program"):
        raw([*values, 0, 0], types, of=(1, 1, 1, 64, 1, 1))
    driver.unload(function)
    with pytest.raises(Violation, match="a kernel of a module that is not loaded"):
        driver.launch(function, (1, 1), values, stream)
    with pytest.raises(Violation, match="unloaded twice"):
        driver.unload(function)


def test_kernels_stay_within_their_memory(lenient: Device, cuda: Cuda, driver: Driver) -> None:
    stream = cuda.create_stream()
    function, values = load(driver), arguments(cuda, stream)
    driver.launch(function, (1, 1), [*values[:3], 5, *values[4:]], stream)
    with pytest.raises(Violation, match=r"digit_kernel: .*an access beyond the arrays"):
        cuda.synchronize(stream)
    lenient.find(int(values[0]), 4, "a test").is_written[:] = False
    driver.launch(function, (1, 1), values, stream)
    with pytest.raises(Violation, match=r"digit_kernel: .*memory is read that nothing has wri"):
        cuda.synchronize(stream)


def test_a_launch_waits_for_a_capture(lenient: Device, cuda: Cuda, driver: Driver) -> None:
    """A driver may load the kernel at that moment, which a capture of another thread forbids."""
    stream = cuda.create_stream()
    function, values = load(driver), arguments(cuda, stream)

    def use() -> None:
        cuda.select()
        driver.launch(function, (1, 1), values, stream)
        driver.unload(load(driver))

    thread = threading.Thread(target=use)
    with CAPTURES.alone():
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert lenient.kernel_launches == []
    thread.join()
    assert lenient.kernel_launches == ["digit_kernel"]


def test_a_kernel_of_another_name(cuda: Cuda, driver: Driver, lenient: Device) -> None:
    image = kernel_image(Kernel.DIGIT, SHAPE, (8, 9))
    with pytest.raises(SessionError, match="cuModuleGetFunction failed with CUDA_ERROR_NOT_FOUND"):
        driver.load(image, "another", (), 4, 1024)
    lenient.check_nothing_left()


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    expected = r"Searching on the GPU needs cuda-bindings.*pip install 'xclip-deploy\[resident\]'"
    with pytest.raises(MissingExtraError, match=expected):
        open_driver()
