"""Memory of this process: resident, and on a GPU."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not tell (it is not Linux)."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """Most resident memory since the start, or since :func:`forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew, from what is resident now. A container may not allow it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class DeviceMemory:
    """What is taken of a GPU's memory, by the driver's count of what is free.

    The count is of the whole device: exact while nothing else uses it. The CUDA context that
    any use of the GPU needs is made here, so that it is not counted.
    """

    def __init__(self, device_id: int) -> None:
        """Begin to count. Raises OSError without a working driver or such a GPU."""
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(0), ctypes.c_void_p()
        self._check(self._driver.cuInit(0))
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), device_id))
        self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        self._context = context
        self._free_before = self._free()

    def taken_bytes(self) -> int:
        """Bytes taken since the count began."""
        return max(0, self._free_before - self._free())

    def _free(self) -> int:
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        # Whatever context is current belongs to a session: it is put back.
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        self._check(self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        self._check(self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())))
        return free.value

    def _check(self, status: int) -> None:
        if status != 0:
            raise OSError(f"the NVIDIA driver reports CUDA error {status}")


def _status(field: str) -> int | None:
    with suppress(OSError):
        text = _STATUS.read_text(encoding="utf-8")
        found = re.search(rf"^{field}:\s*(\d+) kB$", text, re.MULTILINE)
        if found:
            return int(found[1]) << 10
    return None
