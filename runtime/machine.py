"""What this process may use of its machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Count the CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # respects the limits of containers and taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
