"""Ask the NVIDIA driver."""

from __future__ import annotations

import ctypes


def why_no_gpu() -> str | None:
    """Say why no GPU can be used here, by the driver's own library; None where one can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 not found)"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver reports CUDA error {status}"
    return None if count.value > 0 else "the NVIDIA driver sees no GPU"
