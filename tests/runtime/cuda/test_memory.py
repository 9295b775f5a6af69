from __future__ import annotations

import numpy as np
import pytest

from stand_in_device import Device
from xclip_deploy.errors import DeviceMemoryError
from xclip_deploy.runtime.cuda.memory import DeviceBuffer, DeviceMemory, PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import CudaCallError, open_cuda

MIB = 1 << 20


def test_out_of_memory_gives_the_numbers(device: Device) -> None:
    device.total_bytes = 1025 * MIB // 100
    memory = DeviceMemory(open_cuda())
    held = memory.allocate(10 * MIB, "the gallery")
    with pytest.raises(DeviceMemoryError) as caught:
        memory.allocate(MIB, "a buffer")
    assert str(caught.value) == (
        "GPU 0 is out of memory: a buffer needs 1.0 MiB, 0.2 MiB of 10.2 MiB are free, "
        "10.0 MiB are held by this model; end other programs on it, or use smaller batches, "
        "fewer streams or resident_gallery=False"
    )
    assert memory.held_bytes == 10 * MIB
    memory.free(held)
    assert memory.held_bytes == 0


def test_the_bound(device: Device) -> None:
    memory = DeviceMemory(open_cuda(), 10 * MIB)
    memory.reserve(4 * MIB, "an engine")
    with pytest.raises(
        DeviceMemoryError, match=r"a buffer needs 7.0 MiB of GPU memory; 4.0 MiB of"
    ):
        memory.allocate(7 * MIB, "a buffer")
    memory.free(memory.allocate(6 * MIB, "a buffer"))
    memory.release(4 * MIB)
    assert memory.held_bytes == 0


def test_another_failure_is_not_taken_for_it(device: Device) -> None:
    memory = DeviceMemory(open_cuda())
    device.fail("cudaMalloc", "cudaErrorDevicesUnavailable")
    with pytest.raises(CudaCallError, match="cudaErrorDevicesUnavailable"):
        memory.allocate(1, "a buffer")
    assert memory.held_bytes == 0


def test_numbers_that_cannot_be_asked(device: Device) -> None:
    memory = DeviceMemory(open_cuda())
    device.fail("cudaMemGetInfo", "cudaErrorUnknown")
    with pytest.raises(DeviceMemoryError, match="how much is free cannot be asked"):
        memory.allocate(2048 * MIB, "a buffer")


def test_a_buffer_grows_by_half(device: Device) -> None:
    buffer = DeviceBuffer(DeviceMemory(open_cuda()), "a buffer")
    assert [(buffer.hold(n), buffer.nbytes) for n in (100, 50, 101, 400)] == [
        (True, 100),
        (False, 100),
        (True, 150),
        (True, 400),
    ]
    buffer.close()
    buffer.close()


def test_a_buffer_takes_what_it_needs_where_more_is_not_to_be_had(device: Device) -> None:
    memory = DeviceMemory(open_cuda(), 1000)
    buffer = DeviceBuffer(memory, "a buffer")
    buffer.hold(800)
    buffer.hold(900)
    assert buffer.nbytes == 900
    with pytest.raises(DeviceMemoryError):
        buffer.hold(1001)
    assert (buffer.nbytes, memory.held_bytes) == (0, 0)
    buffer.hold(1000)  # and can be used on
    buffer.close()


def test_pinned_memory(device: Device) -> None:
    pinned = PinnedBuffer(open_cuda())
    pinned.hold(24)
    view = pinned.view((2, 3), "float32")
    view[:] = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(pinned.view((6,), "float32"), np.arange(6))
    device.fail("cudaHostAlloc", "cudaErrorMemoryAllocation")
    with pytest.raises(DeviceMemoryError, match=r"the host has no 1.0 MiB of memory to pin"):
        pinned.hold(MIB)
    assert pinned.nbytes == 0
    pinned.hold(10)
    device.fail("cudaHostAlloc", "cudaErrorMemoryAllocation")
    pinned.hold(12)
    assert pinned.nbytes == 12, "no room to grow by half, but for what is needed"
    pinned.close()
