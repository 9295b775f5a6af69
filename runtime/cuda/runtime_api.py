"""Call the CUDA runtime, and check the status of every call.

cuda-core (1.2.2) could replace part of this module, but would lose checks. Its errors name the
status but not the function that failed. A failure while a resource is freed becomes a printed
warning. ``DeviceMemoryResource`` is a stream-ordered pool without our bound, and may withhold freed
memory from TensorRT. ``Device`` does not tell how much memory is free; its NVML part does, but
numbers GPUs in another order. TensorRT needs addresses and stream numbers, so ``Buffer`` and
``GraphBuilder`` would need wrappers again. Its compiled code calls the driver: the stand-in device
could not replace the driver there, and no test could make a call fail.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from xclip_deploy.errors import DriverError, MissingExtraError, SessionError
from xclip_deploy.runtime.cuda.gate import CAPTURES

_MODULE = "cuda.bindings.runtime"

FUNCTIONS = (
    "cudaDeviceGetAttribute",
    "cudaDriverGetVersion",
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMalloc",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamSynchronize",
)
"""All functions of ``cuda.bindings.runtime`` that this package calls."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU."""

    device_id: int
    name: str
    compute_capability: tuple[int, int]

    @property
    def target(self) -> str:
        """Name in engine sets: ``sm89``."""
        return "sm{}{}".format(*self.compute_capability)

    def __str__(self) -> str:
        return f"{self.name} ({self.target})"


@dataclass(frozen=True)
class Stream:
    """A stream of the CUDA runtime. ``int`` of it is the number that TensorRT takes."""

    handle: Any

    def __int__(self) -> int:
        return int(self.handle)


LOST = "CUDA works no more in this process: end it, and start it again"
"""Remedy for an error after which every call of CUDA fails, in words."""
_LASTING = {
    "cudaErrorAssert",
    "cudaErrorContained",
    "cudaErrorECCUncorrectable",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
}
"""Statuses that CUDA returns from the first such fault until the process ends."""


class CudaCallError(SessionError):
    """Failure of a call of the CUDA runtime."""

    def __init__(self, function: str, name: str, description: str) -> None:
        remedy = f"; {LOST}" if name in _LASTING else ""
        super().__init__(f"{function} failed with {name}: {description}{remedy}")
        self.name = name
        """Name of the status, such as ``cudaErrorMemoryAllocation``."""


class Cuda:
    """The CUDA runtime on one device.

    Each thread has a current device, so a thread calls :meth:`select` before other methods. Every
    method raises CudaCallError with the names of the function and the status.
    """

    def __init__(self, api: Any, device_id: int = 0) -> None:  # noqa: ANN401 - untyped bindings
        """Wrap ``cuda.bindings.runtime``, or a stand-in for it."""
        self._api = api
        self.device_id = device_id

    def select(self) -> None:
        """Make the device the current one of this thread."""
        self._call("cudaSetDevice", self.device_id)

    def gpu(self) -> CudaDevice:
        """Describe the device."""
        attributes = self._api.cudaDeviceAttr
        major = self._call(
            "cudaDeviceGetAttribute",
            attributes.cudaDevAttrComputeCapabilityMajor,
            self.device_id,
        )
        minor = self._call(
            "cudaDeviceGetAttribute",
            attributes.cudaDevAttrComputeCapabilityMinor,
            self.device_id,
        )
        properties = self._call("cudaGetDeviceProperties", self.device_id)
        name = properties.name
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return CudaDevice(self.device_id, text.rstrip("\0"), (int(major), int(minor)))

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory, bytes."""
        with CAPTURES.shared():
            free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    # -- memory ----------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory, aligned to 256 bytes, and return its address."""
        with CAPTURES.shared():
            return int(self._call("cudaMalloc", nbytes))

    def free(self, address: int) -> None:
        """Free device memory."""
        with CAPTURES.shared():
            self._call("cudaFree", address)

    def allocate_pinned(self, nbytes: int) -> int:
        """Allocate host memory that stays in place, so that copies run beside computation."""
        with CAPTURES.shared():
            return int(self._call("cudaHostAlloc", nbytes, self._api.cudaHostAllocDefault))

    def free_pinned(self, address: int) -> None:
        """Free pinned host memory."""
        with CAPTURES.shared():
            self._call("cudaFreeHost", address)

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy from pinned host memory, which must not change until it is done."""
        self._copy("cudaMemcpyHostToDevice", target, source, nbytes, stream)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy to pinned host memory, to be read after :meth:`synchronize`."""
        self._copy("cudaMemcpyDeviceToHost", target, source, nbytes, stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy within device memory."""
        self._copy("cudaMemcpyDeviceToDevice", target, source, nbytes, stream)

    def clear(self, target: int, nbytes: int, stream: Stream) -> None:
        """Enqueue zeros for device memory."""
        self._call("cudaMemsetAsync", target, 0, nbytes, stream.handle)

    # -- streams ---------------------------------------------------------------------------

    def create_stream(self) -> Stream:
        """Create a stream that does not wait for the default one."""
        with CAPTURES.shared():
            return Stream(self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def synchronize(self, stream: Stream) -> None:
        """Wait until all enqueued work is done. No capture of another thread begins meanwhile."""
        with CAPTURES.shared():
            self._call("cudaStreamSynchronize", stream.handle)

    def destroy_stream(self, stream: Stream) -> None:
        """Destroy a stream."""
        with CAPTURES.shared():
            self._call("cudaStreamDestroy", stream.handle)

    # -- graphs ----------------------------------------------------------------------------

    def begin_capture(self, stream: Stream) -> None:
        """Record the work that this thread enqueues from now on, instead of running it."""
        # Capture this thread alone: others may allocate meanwhile.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> Any:  # noqa: ANN401 - a handle of the bindings
        """End the recording and return the graph, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", stream.handle)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        except CudaCallError:
            with suppress(CudaCallError):  # raise the first failure
                self._call("cudaGraphDestroy", graph)
            raise
        try:
            self._call("cudaGraphDestroy", graph)
        except CudaCallError:
            with suppress(CudaCallError):
                self.destroy_graph(executable)
            raise
        return executable

    def abandon_capture(self, stream: Stream) -> None:
        """End a recording that failed, if it goes on still. The thread that began it calls this.

        A stream that stays in a capture refuses all work.
        """
        with suppress(CudaCallError):  # cudaErrorIllegalState where nothing is recorded
            graph = self._call("cudaStreamEndCapture", stream.handle)
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Stream) -> None:  # noqa: ANN401
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream.handle)

    def destroy_graph(self, graph: Any) -> None:  # noqa: ANN401
        """Destroy a recorded graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _copy(self, kind: str, target: int, source: int, nbytes: int, stream: Stream) -> None:
        direction = getattr(self._api.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, nbytes, direction, stream.handle)

    def _call(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        return _checked(self._api, function, getattr(self._api, function)(*arguments))


def open_cuda(device_id: int = 0, extra: str = "rtx") -> Cuda:
    """Open the CUDA runtime on a GPU, and make it the current device of this thread.

    ``extra``: extra that installs the bindings. Raises MissingExtraError without
    ``cuda-bindings``, and DriverError without a driver, without such a GPU, or where the driver is
    too old.
    """
    try:
        api = importlib.import_module(_MODULE)
    except ImportError as error:
        use = "Running TensorRT engines" if extra == "rtx" else "Copying to a GPU"
        raise MissingExtraError("cuda-bindings", extra, use) from error
    driver, runtime = _version(api, "cudaDriverGetVersion"), _version(api, "cudaRuntimeGetVersion")
    if driver == (0, 0):
        raise DriverError(
            "no NVIDIA driver is installed; install one for CUDA "
            f"{runtime[0]}.0 or newer, or use device='cpu'"
        )
    # Within one major version, CUDA runs on the drivers of all minor versions.
    if driver[0] < runtime[0]:
        raise DriverError(
            f"the NVIDIA driver is too old: it runs CUDA {_dotted(driver)}, and cuda-bindings "
            f"here needs {runtime[0]}.0 or newer; update the driver, or run: "
            f"pip install 'cuda-bindings<{driver[0] + 1}'"
        )
    status, count = api.cudaGetDeviceCount()
    if _status_name(status) == "cudaErrorInsufficientDriver":
        raise DriverError(
            f"the NVIDIA driver is too old: it runs CUDA {_dotted(driver)}, the CUDA runtime "
            f"here is {_dotted(runtime)}; update the driver"
        )
    if _status_name(status) == "cudaErrorNoDevice":
        raise DriverError("the NVIDIA driver sees no GPU; use device='cpu'")
    _checked(api, "cudaGetDeviceCount", (status, count))
    if device_id >= count:
        raise DriverError(
            f"GPU {device_id} was asked for, the driver sees {count}, counted from 0; "
            f"use device_id 0{f' to {count - 1}' if count > 1 else ''}"
        )
    cuda = Cuda(api, device_id)
    cuda.select()
    return cuda


def _version(api: Any, function: str) -> tuple[int, int]:  # noqa: ANN401
    """Ask for a version, which CUDA gives as 13050 for 13.5."""
    number = int(_checked(api, function, getattr(api, function)()))
    return number // 1000, number % 1000 // 10


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _checked(api: Any, function: str, answer: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Check a call's status and return its other results: None, one value or a tuple."""
    status, *values = answer
    if _status_name(status) != "cudaSuccess":
        description = api.cudaGetErrorString(status)[1]
        text = description.decode(errors="replace") if description else "no description"
        raise CudaCallError(function, _status_name(status), text)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _status_name(status: Any) -> str:  # noqa: ANN401 - an enum of the bindings
    return str(status.name)
