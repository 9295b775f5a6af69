"""Keeping freed memory: what a training step gives back, the next one asks for again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt(3)``, in glibc's ``malloc.h``."""
_LARGEST_KEPT = (1 << 30, 32 << 20)
"""Bytes of one block; larger ones still come from the system and go back to it. Older versions
refuse the first."""
_MOST_KEPT = (1 << 31) - 1
"""Bytes that stay with the process at its heap's end; ``mallopt`` takes no more."""


def keep_freed_memory() -> bool:
    """Tell the C library of this process to keep large blocks that are freed.

    glibc returns large blocks to the system at once. A step on the CPU frees and asks for hundreds
    of megabytes of activations, and the system clears every page of them anew: of the demo
    preset's steps that is a twentieth of the time. Meant for a process whose work is training: it
    holds its peak of memory from then on. Returns whether there was anything to tell; elsewhere
    than in glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Each returns 1 where it was taken.
    is_kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
    return bool(is_kept and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
