"""The functions of ``cuda.bindings.runtime`` that the runner calls, on the stand-in.

Statuses, attributes and directions are the real enums; a value of another type is a violation.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

from stand_in_device.device import Device, Stream, Work

_STATUS = real.cudaError_t


class CudaRuntime:
    """Stands in for the module."""

    cudaDeviceAttr = real.cudaDeviceAttr
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaHostAllocDefault = real.cudaHostAllocDefault
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaGetErrorName = staticmethod(real.cudaGetErrorName)
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)

    def __init__(self, device: Device) -> None:
        self._device = device

    # -- driver and device -----------------------------------------------------------------

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cudaDriverGetVersion", self._device.driver_version)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cudaRuntimeGetVersion", self._device.runtime_version)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self._device.count == 0:
            return _STATUS.cudaErrorNoDevice, None
        return self._answer("cudaGetDeviceCount", self._device.count)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if (status := self._fault("cudaSetDevice")) is not None:
            return (status,)
        if not 0 <= device < self._device.count:
            return (_STATUS.cudaErrorInvalidDevice,)
        self._device.select(device)
        return (_STATUS.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, ...]:
        attributes = real.cudaDeviceAttr
        major, minor = self._device.compute_capability
        known = {
            attributes.cudaDevAttrComputeCapabilityMajor: major,
            attributes.cudaDevAttrComputeCapabilityMinor: minor,
        }
        return self._answer("cudaDeviceGetAttribute", known[attribute])

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        properties = SimpleNamespace(name=self._device.name.encode())
        return self._answer("cudaGetDeviceProperties", properties)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        if (status := self._fault("cudaMemGetInfo")) is not None:
            return status, None, None
        total = self._device.total_bytes
        return _STATUS.cudaSuccess, total - self._device.used_bytes, total

    # -- memory ----------------------------------------------------------------------------

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if (status := self._fault("cudaMalloc")) is not None:
            return status, None
        self._device.check_selected("cudaMalloc")
        if self._device.is_capturing():
            return _STATUS.cudaErrorStreamCaptureUnsupported, None
        if size == 0:
            raise self._device.violation("cudaMalloc of 0 bytes")
        address = self._device.allocate(size)
        if address is None:
            return _STATUS.cudaErrorMemoryAllocation, None
        return _STATUS.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self._device.check_selected("cudaFree")
        # As the real one: a failure that it reports may be that of earlier work.
        self._device.free(address)
        return self._answer("cudaFree")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        if (status := self._fault("cudaHostAlloc")) is not None:
            return status, None
        self._device.check_selected("cudaHostAlloc")
        return _STATUS.cudaSuccess, self._device.allocate_pinned(size)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        self._device.free_pinned(address)
        return self._answer("cudaFreeHost")

    def cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: Any, handle: Any
    ) -> tuple[Any, ...]:
        if (status := self._fault("cudaMemcpyAsync")) is not None:
            return (status,)
        stream = self._device.stream(handle, "cudaMemcpyAsync")
        kinds = real.cudaMemcpyKind
        if kind == kinds.cudaMemcpyHostToDevice:
            work = self._to_device(target, source, count)
        elif kind == kinds.cudaMemcpyDeviceToHost:
            work = self._to_host(target, source, count)
        elif kind == kinds.cudaMemcpyDeviceToDevice:
            work = self._on_device(target, source, count)
        else:
            raise self._device.violation(f"a copy of kind {kind!r}")
        self._device.enqueue(stream, work)
        return (_STATUS.cudaSuccess,)

    def _to_device(self, target: int, source: int, count: int) -> Work:
        device = self._device
        block, host = device.pinned(source, count, "a copy to the device")
        allocation = device.find(target, count, "a copy to the device")

        def run() -> None:
            # Only now: whoever changed the host memory meanwhile gets what is there.
            device.write(target, host, "a copy to the device")
            device.bytes_to_device += count

        return Work(run, (block, allocation.address))

    def _to_host(self, target: int, source: int, count: int) -> Work:
        device = self._device
        block, host = device.pinned(target, count, "a copy to the host")
        allocation = device.find(source, count, "a copy to the host")
        host[:] = 0xCB  # what is read before the stream was waited for

        def run() -> None:
            host[:] = device.read(source, count, "a copy to the host")

        return Work(run, (block, allocation.address))

    def _on_device(self, target: int, source: int, count: int) -> Work:
        device = self._device
        to = device.find(target, count, "a copy on the device")
        origin = device.find(source, count, "a copy on the device")

        def run() -> None:
            device.write(target, device.read(source, count, "a copy on the device"), "a copy")

        return Work(run, (to.address, origin.address))

    def cudaMemsetAsync(self, target: int, value: int, count: int, handle: Any) -> tuple[Any, ...]:
        if (status := self._fault("cudaMemsetAsync")) is not None:
            return (status,)
        device = self._device
        stream = device.stream(handle, "cudaMemsetAsync")
        allocation = device.find(target, count, "a memset")

        def run() -> None:
            device.write(target, np.full(count, value, np.uint8), "a memset")

        device.enqueue(stream, Work(run, (allocation.address,)))
        return (_STATUS.cudaSuccess,)

    # -- streams and graphs ----------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if (status := self._fault("cudaStreamCreateWithFlags")) is not None:
            return status, None
        self._device.check_selected("cudaStreamCreateWithFlags")
        if flags != real.cudaStreamNonBlocking:
            raise self._device.violation("a stream that waits for the default one")
        return _STATUS.cudaSuccess, self._device.create_stream()

    def cudaStreamSynchronize(self, handle: Any) -> tuple[Any, ...]:
        stream = self._device.stream(handle, "cudaStreamSynchronize")
        if (status := self._fault("cudaStreamSynchronize")) is not None:
            stream.pending.clear()  # after such an error nothing runs any more
            return (status,)
        if stream.capture is not None:
            stream.is_capture_valid = False
            return (_STATUS.cudaErrorStreamCaptureUnsupported,)
        self._device.synchronize(stream)
        return (_STATUS.cudaSuccess,)

    def cudaStreamDestroy(self, handle: Any) -> tuple[Any, ...]:
        stream = self._device.stream(handle, "cudaStreamDestroy")
        self._device.destroy_stream(stream)
        return self._answer("cudaStreamDestroy")

    def cudaStreamBeginCapture(self, handle: Any, mode: Any) -> tuple[Any, ...]:
        if (status := self._fault("cudaStreamBeginCapture")) is not None:
            return (status,)
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise self._device.violation("a capture that forbids other threads to allocate")
        stream = self._device.stream(handle, "cudaStreamBeginCapture")
        stream.capture, stream.capturing_thread = [], threading.get_ident()
        stream.is_capture_valid = True
        return (_STATUS.cudaSuccess,)

    def cudaStreamEndCapture(self, handle: Any) -> tuple[Any, ...]:
        stream = self._device.stream(handle, "cudaStreamEndCapture")
        if stream.capture is None:
            return _STATUS.cudaErrorIllegalState, None
        captured, is_valid = stream.capture, stream.is_capture_valid
        stream.capture = stream.capturing_thread = None
        if (status := self._fault("cudaStreamEndCapture")) is not None:
            return status, None
        if not is_valid:
            return _STATUS.cudaErrorStreamCaptureInvalidated, None
        return _STATUS.cudaSuccess, _Graph(self._device.add_graph(), captured)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        if (status := self._fault("cudaGraphInstantiate")) is not None:
            return status, None
        return _STATUS.cudaSuccess, _Graph(self._device.add_graph(), graph.works)

    def cudaGraphLaunch(self, graph: Any, handle: Any) -> tuple[Any, ...]:
        if (status := self._fault("cudaGraphLaunch")) is not None:
            return (status,)
        stream: Stream = self._device.stream(handle, "cudaGraphLaunch")
        for work in graph.works:
            if work.check is not None:
                work.check()
            self._device.enqueue(stream, work)
        self._device.graph_launches += 1
        return (_STATUS.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self._device.remove_graph(graph.number)
        return self._answer("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self._device.remove_graph(graph.number)
        return self._answer("cudaGraphExecDestroy")

    def _fault(self, function: str) -> Any:
        name = self._device.fault(function)
        return None if name is None else getattr(_STATUS, name)

    def _answer(self, function: str, *values: Any) -> tuple[Any, ...]:
        status = self._fault(function)
        if status is not None:
            return (status, *[None] * len(values))
        return (_STATUS.cudaSuccess, *values)


class _Graph:
    def __init__(self, number: int, works: list[Work]) -> None:
        self.number = number
        self.works = works
