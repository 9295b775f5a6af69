"""Encoded files that a process writes once for each set of arguments, and copies from then on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

_Options = ParamSpec("_Options")
_Writer = Callable[Concatenate[Path, _Options], Path]
_MOST_BYTES = 1 << 20
"""Largest file that is kept in memory."""


def written_once(write: _Writer[_Options]) -> _Writer[_Options]:
    """Make ``write(path, ...)`` encode once for equal arguments and file types.

    Encoding takes a quarter of a second, and dozens of tests want the same movie. A call with a
    function among its arguments always encodes, since functions cannot be compared.
    """
    kept: dict[str, bytes] = {}

    @functools.wraps(write)
    def written(path: Path, *args: _Options.args, **kwargs: _Options.kwargs) -> Path:
        if any(callable(value) for value in (*args, *kwargs.values())):
            return write(path, *args, **kwargs)
        path.parent.mkdir(exist_ok=True)
        key = repr((path.suffix, args, sorted(kwargs.items())))
        if key in kept:
            path.write_bytes(kept[key])
            return path
        write(path, *args, **kwargs)
        if path.stat().st_size <= _MOST_BYTES:
            kept[key] = path.read_bytes()
        return path

    return written
