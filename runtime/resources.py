"""Processor cores and host memory that this process may use, and the memory that it holds.

psutil reads the memory of the machine and of the process. It knows neither the limits of a
container nor, on Linux, the peak of a process. This module reads those two from the kernel's
files.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
"""Folder of the container's limits, on Linux with control groups v2."""
_PROCESS = Path("/proc/self")


def usable_cores() -> int:
    """Count the cores that this process may use, at least 1.

    The count is the smaller of two: the process's affinity (``taskset``, a container's cores),
    and the container's quota of processor time, rounded.
    """
    # psutil's cpu_affinity() is missing on the same systems as this.
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # ValueError: the quota is "max", which is none
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory_bytes() -> int:
    """Return the memory that this process may use, in bytes: the machine's or its container's."""
    import psutil  # Here: it takes 20 ms, and few programs ask.

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # ValueError: the limit is "max", which is none
        total = min(total, int((_CGROUP / "memory.max").read_text(encoding="utf-8")))
    return total


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int | None:
    """Return the peak of resident memory in bytes, since the start or :func:`forget_peak`.

    None on systems other than Linux. psutil gives no peak on Linux, and ``ru_maxrss`` begins
    with the peak of the process that started this one.
    """
    with suppress(OSError):
        status = (_PROCESS / "status").read_text(encoding="utf-8")
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        if found:
            return int(found[1]) << 10
    return None


def forget_peak() -> None:
    """Restart the peak from what is resident now. A container may not allow it."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def cpu_model() -> str:
    """Return the processor's name."""
    # psutil does not name the processor.
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
