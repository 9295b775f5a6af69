"""Which machine this is, and what is installed on it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from xclip_deploy.runtime.benchmark.results import Machine

_PACKAGES = (
    "xclip-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        memory_bytes=_usable_memory(),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        load_average=round(os.getloadavg()[0], 2),
    )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide how fast a bundle runs."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    driver = _driver()
    if driver is not None:
        number = ctypes.c_int(0)
        if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
            versions["CUDA driver"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return versions


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))  # ValueError: no quota
    return cores


def _usable_memory() -> int | None:
    limits = []
    with suppress(OSError):
        found = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
        if found:
            limits.append(int(found[1]) << 10)
    with suppress(OSError, ValueError):
        limits.append(int(_read("/sys/fs/cgroup/memory.max")))  # ValueError: no limit
    return min(limits, default=None)


def _gpus() -> tuple[str, ...]:
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    names = []
    for number in range(count.value):
        name = ctypes.create_string_buffer(256)
        device = ctypes.c_int(0)
        if driver.cuDeviceGet(ctypes.byref(device), number) == 0:
            driver.cuDeviceGetName(name, len(name), device)
            names.append(name.value.decode())
    return tuple(names)


def _driver() -> ctypes.CDLL | None:
    """NVIDIA's driver library, initialised; None where there is none that works."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
