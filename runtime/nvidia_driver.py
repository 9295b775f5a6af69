"""Ask the NVIDIA driver's own library for this process's GPUs and their free memory.

This module alone calls ``libcuda``, by ctypes. NVML (``pynvml``) answers other questions: it lists
the machine's GPUs rather than those that CUDA gives this process. It ignores
``CUDA_VISIBLE_DEVICES``, numbers GPUs in another order, and answers where CUDA itself cannot
start. ``cuInit`` is the real test. ``libcuda`` comes with every driver, so that the base install
needs no package for it. ``cuda-bindings`` would do too, but only the extras ``tensorrt`` and
``rtx`` install it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass

_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
"""Numbers of these device attributes in ``cuda.h``."""
_MAX_NAME_BYTES = 256


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU that CUDA gives this process."""

    name: str
    major: int
    minor: int
    """Minor number of the compute capability."""


def why_no_gpu() -> str | None:
    """Say why CUDA has no GPU for this process; None where it has one."""
    try:
        count = _Driver().count()
    except OSError as error:
        return str(error)
    return None if count > 0 else "the NVIDIA driver sees no GPU"


def visible_gpus() -> tuple[VisibleGpu, ...]:
    """List the GPUs that answer, in CUDA's order; none without a driver that works."""
    gpus: list[VisibleGpu] = []
    with suppress(OSError):
        driver = _Driver()
        for number in range(driver.count()):
            with suppress(OSError):
                gpus.append(driver.gpu(number))
    return tuple(gpus)


def first_gpu() -> VisibleGpu | None:
    """Return GPU 0; None where there is none, or no driver that works."""
    with suppress(OSError):
        return _Driver().gpu(0)
    return None


def driver_cuda_version() -> str | None:
    """Return the newest CUDA version that the driver runs, ``13.0``; None without a driver."""
    try:
        driver, number = _Driver(), ctypes.c_int(0)
        driver.call("cuDriverGetVersion", ctypes.byref(number))
    except OSError:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


class GpuMemoryGauge:
    """Gauge of the GPU memory that is taken from now on.

    It reads the driver's count of free memory on the whole device, which is exact while nothing
    else uses the GPU. It first makes the CUDA context that any use of a GPU needs, so that the
    context's memory is not counted.
    """

    def __init__(self, device_id: int) -> None:
        """Begin to count. Raises OSError without a working driver or such a GPU."""
        self._driver = _Driver()
        device, self._context = ctypes.c_int(0), ctypes.c_void_p()
        self._driver.call("cuDeviceGet", ctypes.byref(device), device_id)
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._free_before = self._free_bytes()

    def taken_bytes(self) -> int:
        """Return the bytes taken since the count began, at least 0."""
        return max(0, self._free_before - self._free_bytes())

    def _free_bytes(self) -> int:
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        # A session may have made another context current: the gauge puts it back.
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            self._driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return free.value


class _Driver:
    """The driver's library, initialised. Every failure is an OSError with a one-line message."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise OSError(f"no NVIDIA driver is installed ({_LIBRARY} not found)") from error
        self.call("cuInit", 0)

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of the driver. Raises OSError where its status is not 0."""
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise OSError(f"the NVIDIA driver reports CUDA error {status}")

    def count(self) -> int:
        """Count the GPUs that CUDA gives this process."""
        count = ctypes.c_int(0)
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def gpu(self, number: int) -> VisibleGpu:
        """Describe one GPU."""
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_MAX_NAME_BYTES)
        self.call("cuDeviceGet", ctypes.byref(device), number)
        self.call("cuDeviceGetName", name, _MAX_NAME_BYTES, device)
        for attribute, found in (
            (_COMPUTE_CAPABILITY_MAJOR, major),
            (_COMPUTE_CAPABILITY_MINOR, minor),
        ):
            self.call("cuDeviceGetAttribute", ctypes.byref(found), attribute, device)
        return VisibleGpu(name.value.decode(errors="replace"), major.value, minor.value)
