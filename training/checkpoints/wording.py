"""How names and foreign errors are worded inside one-line messages."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Join names into ``a, b, c and 12 more``; ``limit`` is how many are spelled out."""
    every = list(names)
    if not every:
        return "none"
    rest = len(every) - limit
    return ", ".join(every[:limit]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: BaseException) -> str:
    """Return the type and first line of an error; torch's messages run over many lines."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")
