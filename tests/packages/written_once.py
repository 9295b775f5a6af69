"""Encoded files that a process writes once for each set of arguments, and copies from then on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_Writer = TypeVar("_Writer", bound=Callable[..., Path])
_MOST_BYTES = 1 << 20
"""Largest file that is kept in memory."""


def written_once(write: _Writer) -> _Writer:
    """Make ``write(path, ...)`` encode once for equal arguments and file types.

    Encoding takes a quarter of a second, and dozens of tests want the same movie. A call with a
    function among its arguments always encodes, since functions cannot be compared.
    """
    kept: dict[str, bytes] = {}

    @functools.wraps(write)
    def written(path: Path, *args: Any, **kwargs: Any) -> Path:
        path.parent.mkdir(exist_ok=True)
        if any(callable(value) for value in (*args, *kwargs.values())):
            return write(path, *args, **kwargs)
        key = repr((path.suffix, args, sorted(kwargs.items())))
        if key in kept:
            path.write_bytes(kept[key])
            return path
        write(path, *args, **kwargs)
        if path.stat().st_size <= _MOST_BYTES:
            kept[key] = path.read_bytes()
        return path

    return written  # type: ignore[return-value]
