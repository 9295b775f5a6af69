"""Processor cores and host memory: what this process may use, and what it holds.

psutil reads the memory of the machine and of the process. It knows neither the limits of a
container nor, on Linux, the peak of a process. Those two are read from the kernel's files here.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
"""Limits of this process's container, where the system is Linux with control groups v2."""
_PROCESS = Path("/proc/self")


def usable_cores() -> int:
    """Count the cores that this process may use, at least 1.

    That is the smaller of its affinity (``taskset``, a container's cores) and its container's
    quota of processor time, rounded.
    """
    # psutil's cpu_affinity() is missing on the same systems as this.
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # ValueError: the quota is "max", which is none
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit."""
    import psutil  # Here: it takes 20 ms, and few programs ask.

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # ValueError: the limit is "max", which is none
        total = min(total, int((_CGROUP / "memory.max").read_text(encoding="utf-8")))
    return total


def resident_bytes() -> int:
    """Return the memory of this process that is resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int | None:
    """Return the most resident memory since the start, or since :func:`forget_peak`.

    None where the system does not tell (it is not Linux). By hand: psutil gives no peak on
    Linux, and ``ru_maxrss`` begins with the peak of the process that started this one.
    """
    with suppress(OSError):
        status = (_PROCESS / "status").read_text(encoding="utf-8")
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        if found:
            return int(found[1]) << 10
    return None


def forget_peak() -> None:
    """Let the peak begin anew, from what is resident now. A container may not allow it."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")
